/* What td_xfer_create() takes and refuses. */
#include "common/transfer/stats.h"
#include "common/transfer/xfer.h"
#include "tests/common/kv/fail_alloc.h"
#include "tests/td_test.h"

#include <arpa/inet.h>

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *__wrap_malloc(size_t size)
{
    return fail_alloc_in > 0 && --fail_alloc_in == 0 ? NULL : __real_malloc(size);
}

static unsigned char memory[8][4096];
static td_xfer_region region;

static td_xfer_config config_of(void)
{
    td_xfer_config config;
    td_xfer_config_init(&config);
    region = (td_xfer_region){memory, 4096, 8, 1};
    config.regions = &region;
    config.n_regions = 1;
    config.incarnation = "inc-1";
    config.max_links = 4;
    config.max_jobs = 16;
    config.max_pages = 64;
    return config;
}

static td_xfer_desc descriptor_of(const td_xfer_config *config)
{
    td_xfer *xfer;
    td_err err;
    td_xfer_desc desc;
    size_t n_bytes;
    if (td_xfer_create(config, &xfer, &err) != TD_OK)
        fail_msg("%s", err.text);
    const unsigned char *bytes = td_xfer_descriptor(xfer, &n_bytes);
    TD_EQ(TD_OK, td_xfer_desc_decode(bytes, n_bytes, &desc, NULL));
    td_xfer_destroy(xfer);
    return desc;
}

TEST(the_descriptor_says_what_was_configured)
{
    td_xfer_config config = config_of();
    config.rank = 3;
    td_xfer_desc desc = descriptor_of(&config);
    TD_STR("inc-1", desc.incarnation);
    TD_EQ(3, desc.rank);
    TD_EQ(4, desc.ip_version);
    TD_MEM(((unsigned char[]){127, 0, 0, 1}), desc.ip, 4);
    TD_TRUE(desc.port != 0);
    TD_EQ(1, desc.n_regions);
    TD_EQ(4096, desc.regions[0].stride);
    TD_EQ(8, desc.regions[0].n_slots);
}

TEST(advertised_addresses_stand_in_the_descriptor)
{
    td_xfer_config config = config_of();
    config.listen = "0.0.0.0:0";
    config.net_devices = "lo";
    config.advertise = "192.0.2.17";
    td_xfer_desc desc = descriptor_of(&config);
    TD_MEM(((unsigned char[]){192, 0, 2, 17}), desc.ip, 4);
    config.advertise = "2001:db8::7";
    desc = descriptor_of(&config);
    TD_EQ(6, desc.ip_version);
    TD_EQ(0x20, desc.ip[0]);
    TD_EQ(7, desc.ip[15]);
}

TEST(a_port_range_is_taken)
{
    td_xfer_config config = config_of();
    config.port_range = "40000-48000";
    config.transport = TD_XFER_TCP;
    TD_TRUE(descriptor_of(&config).port != 0);
}

TEST(an_end_that_serves_nothing_does_not_listen)
{
    td_xfer *xfer;
    td_xfer_config config = config_of();
    td_xfer_desc desc;
    size_t n_bytes;
    region.served = 0;
    TD_EQ(TD_OK, td_xfer_create(&config, &xfer, NULL));
    const unsigned char *bytes = td_xfer_descriptor(xfer, &n_bytes);
    TD_EQ(TD_PROTOCOL, td_xfer_desc_decode(bytes, n_bytes, &desc, NULL)); /* port 0 */
    td_xfer_destroy(xfer);
    config.listen = "0.0.0.0:0"; /* nobody needs to know where */
    config.net_devices = "lo";
    TD_EQ(TD_OK, td_xfer_create(&config, &xfer, NULL));
    td_xfer_destroy(xfer);
}

TEST(bad_configurations_are_refused_in_words)
{
    static const char *const listens[] = {
        "127.0.0.1", "127.0.0.1:",      "127.0.0.1:x", "nonesuch:1", ":7000",
        "[::1:7000", "127.0.0.1:70000", "0.0.0.0:0",   "[::]:0",     ""};
    td_xfer *xfer = NULL;
    td_err err;
    for (size_t i = 0; i < sizeof(listens) / sizeof(listens[0]); i++) {
        td_xfer_config config = config_of();
        config.listen = listens[i];
        if (td_xfer_create(&config, &xfer, &err) != TD_CONFIG)
            fail_msg("listen \"%s\" was taken", listens[i]);
        TD_TRUE(strlen(err.text) > 10);
    }
    td_xfer_config config = config_of();
    config.incarnation = "";
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config.incarnation = "0123456789012345678901234567890123456789012345678901234567890123";
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    config.n_regions = TD_XFER_MAX_REGIONS + 1;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    config.max_jobs = 0;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    config.gets_per_link = 100000;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    config.connect_ms = 0;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    region.stride = 0;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    config = config_of();
    config.net_devices = "nonesuch0";
    config.transport = TD_XFER_TCP;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    TD_TRUE(strstr(err.text, "nonesuch0") != NULL);
    static const char *const ranges[] = {"many",       "7000", "7100-7000", "7000-70000",
                                         "7000-7100x", "0-9",  ""};
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        config = config_of();
        config.port_range = ranges[i];
        TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    }
    TD_TRUE(xfer == NULL);
}

TEST(a_port_in_use_is_told)
{
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n_bytes = sizeof(addr);
    char text[32];
    td_xfer *xfer;
    td_err err;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    TD_EQ(0, bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
    TD_EQ(0, listen(fd, 1));
    TD_EQ(0, getsockname(fd, (struct sockaddr *)&addr, &n_bytes));
    snprintf(text, sizeof(text), "127.0.0.1:%u", ntohs(addr.sin_port));
    td_xfer_config config = config_of();
    config.listen = text;
    TD_EQ(TD_CONFIG, td_xfer_create(&config, &xfer, &err));
    TD_TRUE(strstr(err.text, "listening") != NULL);
}

TEST(any_failed_allocation_is_refused)
{
    td_xfer *xfer = NULL;
    td_err err;
    td_status st = TD_NOMEM;
    int k = 1;
    for (; st != TD_OK; k++) {
        td_xfer_config config = config_of();
        TD_TRUE(k < 100);
        fail_alloc_in = k;
        st = td_xfer_create(&config, &xfer, &err);
        fail_alloc_in = 0;
        if (st != TD_OK)
            TD_EQ(TD_NOMEM, st);
    }
    TD_TRUE(k > 10);
    td_xfer_destroy(xfer);
    td_xfer_destroy(NULL);
}

TD_TEST_MAIN
