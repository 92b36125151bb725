/* Small parts of the transfer layer that need no peer. */
#include "common/transfer/fault.h"
#include "common/transfer/internal.h"
#include "tests/td_test.h"

static td_xfer_fault parse(const char *text)
{
    td_xfer_fault fault;
    TD_EQ(TD_OK, td_xfer_fault_parse(text, &fault, NULL));
    return fault;
}

TEST(faults_are_parsed)
{
    TD_EQ(TD_XFER_FAULT_NONE, parse("").kind);
    TD_EQ(TD_XFER_FAULT_NONE, parse("none").kind);
    td_xfer_fault fault = parse("damage:12:2");
    TD_EQ(TD_XFER_FAULT_DAMAGE, fault.kind);
    TD_EQ(12, fault.nth);
    TD_EQ(2, fault.times);
    TD_EQ(1, parse("damage:3").times);
    TD_EQ(TD_XFER_FAULT_STALL, parse("stall:1").kind);
    TD_EQ(40, parse("stall:7:40").times);
    TD_EQ(TD_XFER_FAULT_BREAK, parse("break:4294967295").kind);
}

TEST(bad_faults_are_refused)
{
    static const char *const bad[] = {"damage",     "damage:",
                                      "damage:0",   "damage:1:3",
                                      "damage:1:0", "damage:-1",
                                      "damage:1 ",  "damage:1:2:3",
                                      "smash:1",    "break:4294967296",
                                      "break:1:2",  "nonesuch",
                                      ":1",         "stall:99999999999999999999999"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        td_xfer_fault fault = {TD_XFER_FAULT_BREAK, 77, 78};
        td_err err;
        TD_EQ(TD_INVALID, td_xfer_fault_parse(bad[i], &fault, &err));
        TD_EQ(77, fault.nth); /* written only on success */
    }
}

TEST(the_transport_is_read_from_what_ucx_prints)
{
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"#  lane[0]: cm tcp\n#  lane[1]:  2:posix/memory.0 md[2]  -> md[2]/posix/sysdev[255] am "
         "am_bw#0 keepalive\n",
         "posix"},
        {"# lane[0]: cm tcp\n# lane[1]:  1:tcp/lo.0 md[1] -> md[1]/tcp/sysdev[255] rma_bw#0 "
         "wireup\n"
         "# lane[2]:  2:posix/memory.0 md[2] -> md[2]/posix/sysdev[255] am\n",
         "posix"},
        {"# lane[0]:  1:tcp/eth0.1 md[1] -> md[1]/tcp/sysdev[255] rma_bw#0 am am_bw#0 wireup\n",
         "tcp"},
        {"# lane[0]: 12:rc_mlx5/mlx5_0:1.0 md[4] -> md[4]/ib/sysdev[0] am rma_bw#0", "rc_mlx5"},
        {"# lane[0]: cm tcp\n", "?"},
        {"", "?"},
        {"lane[lane[0]: 1:", "?"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char name[TD_XFER_TRANSPORT_BYTES], fetcher[TD_XFER_TRANSPORT_BYTES];
        td_ucx_parse_transport(cases[i].text, name, fetcher);
        TD_STR(cases[i].want, name);
    }
    TD_TRUE(td_ucx_is_shm("posix") && td_ucx_is_shm("self"));
    TD_TRUE(!td_ucx_is_shm("tcp") && !td_ucx_is_shm("posix+tcp") && !td_ucx_is_shm("?"));
}

static const char *judge(td_xfer_transport wanted, int allow_tcp, int same_host, const char *found)
{
    td_xfer_config config = {.transport = wanted, .allow_tcp = allow_tcp};
    return td_link_judge_transport(&config, same_host, found);
}

TEST(what_fetches_gpu_memory_is_found_among_the_lanes)
{
    char name[TD_XFER_TRANSPORT_BYTES], fetcher[TD_XFER_TRANSPORT_BYTES];
    td_ucx_parse_transport(
        "#  lane[0]:  1:posix/memory.0 md[1] -> md[1]/posix/sysdev[255] am am_bw#0\n"
        "#  lane[1]:  6:cuda_ipc/cuda.0 md[5] -> md[5]/cuda_ipc/sysdev[255] rma_bw#0\n",
        name, fetcher);
    TD_STR("posix", name);
    TD_STR("cuda_ipc", fetcher);
    TD_TRUE(td_ucx_is_shm("posix+cuda_ipc"));
    td_ucx_parse_transport(
        "#  lane[0]:  1:rc_mlx5/mlx5_0:1 md[1] -> md[1]/ib/sysdev[3] am rma_bw#0\n", name, fetcher);
    TD_STR("rc_mlx5", name);
    TD_STR("rc_mlx5", fetcher);
}

TEST(only_a_transport_that_is_known_and_allowed_will_do)
{
    TD_TRUE(judge(TD_XFER_AUTO, 0, 1, "posix") == NULL);
    TD_TRUE(judge(TD_XFER_AUTO, 0, 1, "tcp") != NULL);
    TD_TRUE(judge(TD_XFER_AUTO, 1, 1, "tcp") == NULL);
    TD_TRUE(judge(TD_XFER_AUTO, 0, 0, "rc_mlx5") == NULL);
    TD_TRUE(judge(TD_XFER_AUTO, 0, 0, "tcp") != NULL);
    TD_TRUE(judge(TD_XFER_AUTO, 1, 0, "tcp") == NULL);
    TD_TRUE(judge(TD_XFER_SHM, 1, 1, "tcp") != NULL);
    TD_TRUE(judge(TD_XFER_TCP, 1, 1, "posix") != NULL);
    TD_TRUE(judge(TD_XFER_TCP, 0, 1, "tcp") == NULL);
    for (int wanted = TD_XFER_AUTO; wanted <= TD_XFER_TCP; wanted++)
        for (int i = 0; i < 4; i++) /* UCX does not tell */
            TD_TRUE(judge((td_xfer_transport)wanted, i & 1, i >> 1, "?") != NULL);
}

TEST(states_stages_and_transports_have_names)
{
    for (int s = 0; s < TD_XFER_LINK_N_STATES; s++)
        TD_TRUE(strlen(td_xfer_link_state_name((td_xfer_link_state)s)) > 3);
    TD_STR("ready", td_xfer_link_state_name(TD_XFER_LINK_READY));
    for (int s = 0; s < TD_XFER_JOB_N_STAGES; s++)
        TD_TRUE(strlen(td_xfer_job_stage_name((td_xfer_job_stage)s)) > 3);
    TD_STR("auto", td_xfer_transport_name(TD_XFER_AUTO));
    TD_STR("shm", td_xfer_transport_name(TD_XFER_SHM));
    TD_STR("tcp", td_xfer_transport_name(TD_XFER_TCP));
}

TD_TEST_MAIN
