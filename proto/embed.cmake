# Writes the bytes of IN as a C array to OUT (see proto/descriptors.h).
file(READ ${IN} hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
file(WRITE ${OUT} "#include \"proto/descriptors.h\"\n\nconst unsigned char td_proto_descriptors[] = {\n${bytes}};\nconst size_t td_proto_descriptors_bytes = sizeof(td_proto_descriptors);\n")
