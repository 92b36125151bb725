# How tandem's folders become libraries, programs and tests. Every folder's CMakeLists.txt uses only these.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

# A warning of a compiler that nobody here has tried must not keep a user from building.
if(CMAKE_C_COMPILER_ID STREQUAL "GNU" AND CMAKE_C_COMPILER_VERSION VERSION_LESS 13)
    set(td_tried_compiler ON)
else()
    set(td_tried_compiler OFF)
endif()
option(TANDEM_WERROR "warnings are errors (default: where the compiler is one that the project is checked with)"
       ${td_tried_compiler})

add_library(td_flags INTERFACE)
set(c_options -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -ffp-contract=off
              -fno-omit-frame-pointer)
set(cuda_options -fmad=false -Xcompiler=-Wall,-Wextra,-ffp-contract=off) # as in C: fused multiply-adds are written out
if(TANDEM_WERROR)
    list(APPEND c_options -Werror)
    list(APPEND cuda_options -Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(td_flags INTERFACE "$<$<COMPILE_LANGUAGE:C>:${c_options}>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
target_compile_definitions(td_flags INTERFACE _GNU_SOURCE)
target_include_directories(td_flags INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_link_libraries(td_flags INTERFACE Threads::Threads m)
if(TANDEM_SANITIZE)
    target_compile_options(td_flags INTERFACE -fsanitize=${TANDEM_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(td_flags INTERFACE -fsanitize=${TANDEM_SANITIZE})
    # gcc judges buffer sizes wrongly behind a sanitizer's checks; the release build has the warning.
    target_compile_options(td_flags INTERFACE -Wno-format-truncation)
endif()

# td_package(<pkg-config name>...): an imported target PkgConfig::<name> for each.
function(td_package)
    foreach(pkg ${ARGN})
        if(NOT TARGET PkgConfig::${pkg})
            pkg_check_modules(${pkg} REQUIRED IMPORTED_TARGET GLOBAL ${pkg})
        endif()
    endforeach()
endfunction()

# td_library(<target> [SOURCES globs...] [DEPS targets...]): a static library of this folder's *.c.
function(td_library target)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    if(NOT A_SOURCES)
        set(A_SOURCES *.c)
    endif()
    file(GLOB sources CONFIGURE_DEPENDS ${A_SOURCES})
    if(sources)
        add_library(${target} STATIC ${sources})
        target_link_libraries(${target} PUBLIC td_flags ${A_DEPS})
    else()
        add_library(${target} INTERFACE)
        target_link_libraries(${target} INTERFACE td_flags ${A_DEPS})
    endif()
endfunction()

# td_program(<target> SOURCES files... DEPS targets...): an installed executable.
function(td_program target)
    cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
    add_executable(${target} ${A_SOURCES})
    target_link_libraries(${target} PRIVATE ${A_DEPS})
    install(TARGETS ${target} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# What `ctest -L threads` runs: a build for TSan needs no more.
add_custom_target(threads_tests)

# td_test(<source.c> [DEPS targets...] [SOURCES more...] [LABELS l...] [TIMEOUT s] [ARGS ...]): every TEST(name) in
# the source is one ctest, run in a process of its own, called <source>.<name>.
function(td_test source)
    cmake_parse_arguments(A "" "TIMEOUT" "DEPS;SOURCES;LABELS;ENV" ${ARGN})
    get_filename_component(stem ${source} NAME_WE)
    td_package(cmocka)
    add_executable(${stem} ${source} ${A_SOURCES})
    target_link_libraries(${stem} PRIVATE ${A_DEPS} td_flags PkgConfig::cmocka)
    if(TANDEM_SANITIZE)
        target_compile_options(${stem} PRIVATE -O1) # what tests spend is spent in the libraries, or in compiling
    endif()
    if("threads" IN_LIST A_LABELS)
        add_dependencies(threads_tests ${stem})
    endif()
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(STRINGS ${source} lines REGEX "^TEST\\([a-zA-Z0-9_]+\\)")
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    foreach(line ${lines})
        string(REGEX REPLACE "^TEST\\(([a-zA-Z0-9_]+)\\).*" "\\1" claim ${line})
        add_test(NAME ${stem}.${claim} COMMAND ${stem} ${claim})
        set_tests_properties(${stem}.${claim} PROPERTIES TIMEOUT ${A_TIMEOUT} SKIP_RETURN_CODE 77)
        if(A_LABELS)
            set_tests_properties(${stem}.${claim} PROPERTIES LABELS "${A_LABELS}")
        endif()
        if(A_ENV)
            set_tests_properties(${stem}.${claim} PROPERTIES ENVIRONMENT "${A_ENV}")
        endif()
    endforeach()
endfunction()
