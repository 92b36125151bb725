#include "tests/td_test.h"

#include "common/base/clock.h"
#include "common/loop/mailbox.h"

#include <pthread.h>

TD_TEST_MAIN

typedef struct {
    uint64_t seq;
    uint32_t n_extra;
    uint8_t extra[200];
} letter;

typedef struct {
    td_loop *loop;
    td_mailbox *box;
    td_timer patience;
    uint64_t n_total, n_seen, close_at;
    bool broken;
} post;

static void on_letter(void *user, const void *msg, size_t len)
{
    post *p = user;
    letter l;
    memset(&l, 0, sizeof(l));
    memcpy(&l, msg, len);
    if (l.seq != p->n_seen || len != offsetof(letter, extra) + l.n_extra)
        p->broken = true;
    for (uint32_t i = 0; i < l.n_extra; i++)
        if (l.extra[i] != (uint8_t)(l.seq + i))
            p->broken = true;
    p->n_seen++;
    if (p->n_seen == (p->close_at ? p->close_at : p->n_total))
        p->close_at != 0 ? td_mailbox_close(p->box) : td_loop_stop(p->loop);
}

static void *write_letters(void *arg)
{
    post *p = arg;
    for (uint64_t seq = 0; seq < p->n_total; seq++) {
        letter l = {.seq = seq, .n_extra = (uint32_t)(seq * 7 % 200)};
        for (uint32_t i = 0; i < l.n_extra; i++)
            l.extra[i] = (uint8_t)(seq + i);
        while (td_mailbox_push(p->box, &l, offsetof(letter, extra) + l.n_extra) == TD_FULL)
            sched_yield();
        if (seq % 5000 == 0)
            td_sleep_ms(1); /* let the loop fall asleep */
    }
    return NULL;
}

TEST(letters_from_another_thread_arrive_all_and_in_order)
{
    post p = {.n_total = 100000};
    pthread_t thread;
    TD_EQ(TD_OK, td_loop_create(&p.loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(p.loop, 4096, on_letter, &p, &p.box, NULL));
    TD_EQ(0, pthread_create(&thread, NULL, write_letters, &p));
    td_loop_run(p.loop);
    pthread_join(thread, NULL); /* its last push has returned: now the box may close */
    td_mailbox_close(p.box);
    TD_EQ(p.n_total, p.n_seen);
    TD_TRUE(!p.broken);
    td_loop_destroy(p.loop);
}

static void note_seen(td_timer *timer, void *user)
{
    post *p = user;
    (void)timer;
    p->n_total = p->n_seen; /* how many had come by then */
}

TEST(a_flood_does_not_starve_timers)
{
    post p = {.close_at = 5000};
    TD_EQ(TD_OK, td_loop_create(&p.loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(p.loop, 1 << 20, on_letter, &p, &p.box, NULL));
    for (uint64_t seq = 0; seq < 5000; seq++) {
        letter l = {.seq = seq};
        TD_EQ(TD_OK, td_mailbox_push(p.box, &l, offsetof(letter, extra)));
    }
    td_timer_init(&p.patience, p.loop, note_seen, &p);
    td_timer_at(&p.patience, 0);
    td_loop_run(p.loop);
    TD_EQ(5000, p.n_seen);
    TD_TRUE(p.n_total < 5000);
    TD_TRUE(!p.broken);
    td_loop_destroy(p.loop);
}

TEST(closing_inside_the_callback_drops_the_rest)
{
    post p = {.n_total = 10, .close_at = 3};
    TD_EQ(TD_OK, td_loop_create(&p.loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(p.loop, 4096, on_letter, &p, &p.box, NULL));
    for (uint64_t seq = 0; seq < 10; seq++) {
        letter l = {.seq = seq};
        TD_EQ(TD_OK, td_mailbox_push(p.box, &l, offsetof(letter, extra)));
    }
    td_loop_run(p.loop);
    TD_EQ(3, p.n_seen);
    td_loop_destroy(p.loop);
}

TEST(full_and_too_large_are_told_apart)
{
    post p = {.n_total = 1, .close_at = UINT64_MAX};
    letter l = {.seq = 0};
    uint8_t huge[9000] = {0};
    TD_EQ(TD_OK, td_loop_create(&p.loop, NULL));
    TD_EQ(TD_OK, td_mailbox_open(p.loop, 4096, on_letter, &p, &p.box, NULL));
    TD_EQ(TD_TOO_LARGE, td_mailbox_push(p.box, huge, sizeof(huge)));
    td_status st;
    while ((st = td_mailbox_push(p.box, &l, sizeof(l))) == TD_OK)
        ;
    TD_EQ(TD_FULL, st);
    td_mailbox_close(p.box);
    td_mailbox_close(NULL);
    td_loop_destroy(p.loop);
}
