#include "common/serve/rest.h"

#include "common/base/clock.h"

#define LOOK_MS 20
/* Whoever still holds a stream open that is no work of ours (reflection), with nothing more to be
 * sent, is cut off. While there are bytes to send, a slow reader gets them: the server resets one
 * that takes none (stall_ms), and the drain's own deadline ends it all. */
#define TELL_MS 1000

static void on_told(void *user)
{
    td_rest *rest = user;
    td_timer_stop(&rest->look);
    td_serve_drained(rest->serve);
}

static void on_look(td_timer *timer, void *user)
{
    td_rest *rest = user;
    int64_t now = td_now_ns();
    (void)timer;
    if (rest->telling) {
        td_rpc_server_stats stats;
        td_rpc_server_get_stats(rest->server, &stats);
        if (stats.queued_bytes > 0 || stats.unsent_bytes > 0)
            rest->until_ns = now + TELL_MS * TD_NS_PER_MS;
        else if (now >= rest->until_ns)
            on_told(rest);
        return;
    }
    if (rest->active(rest->user) > 0)
        return;
    rest->telling = true;
    rest->until_ns = now + TELL_MS * TD_NS_PER_MS;
    td_health_end(rest->health);
    td_rpc_server_drain(rest->server, on_told, rest);
}

void td_rest_begin(td_rest *rest, td_loop *loop)
{
    td_timer_init(&rest->look, loop, on_look, rest);
    td_timer_every(&rest->look, td_now_ns(), LOOK_MS * TD_NS_PER_MS);
}

void td_rest_stop(td_rest *rest)
{
    td_timer_stop(&rest->look);
}
