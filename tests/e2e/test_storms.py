"""Workers that die and stop at random times while pages travel, leases, drains, a starved router: who is not concerned
goes on unchanged, nothing stays behind."""
import random
import threading
import time

import grpc

from harness import Cluster, is_sanitized, run
from reference import prompt_ids

GREEDY = dict(temperature=0, ignore_eos=True)
STORM_SECONDS = 12.0


def no_poison(cluster):
    for d in cluster.prefill + cluster.decode:
        assert "kv.poison" not in d.log() and "free page" not in d.log(), d.tail()


def wait_for(what, timeout, why):
    until = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < until, why
        time.sleep(0.01)


# ---- kill -9 and kill -STOP at random times ----

def hit(rng, victim):
    """Kills the worker, or stops it for a moment or for longer than a heartbeat's deadline."""
    if rng.random() < 0.5:
        victim.kill()
        time.sleep(rng.random() * 0.3)
        victim.start()
        return
    victim.pause()
    time.sleep(rng.choice([0.3, 1.6]))
    victim.resume()


def judge(answer, want):
    """Unchanged, or cut off where its worker was lost."""
    if answer.ok:
        assert answer.ids == want, (answer, want)
        return 1
    assert answer.code == grpc.StatusCode.UNAVAILABLE, answer
    assert answer.ids == want[:len(answer.ids)], (answer, want)
    return 0


def storm(args, transport, seconds=STORM_SECONDS):
    rng = random.Random(args.seed)
    if is_sanitized(args.bin):
        seconds = STORM_SECONDS / 2
    flags = ["--transport", transport, "--debug-poison"]
    with Cluster(args.bin, model=args.model, n_prefill=2, n_decode=2,
                 prefill_flags=flags + ["--chunk", "64", "--layer-group", "1", "--lease", "2s"],
                 decode_flags=flags + ["--drafts", "2"]) as c:
        lengths = (40, 65, 300) if is_sanitized(args.bin) else (40, 65, 300, 500, 900, 1200)
        prompts = [prompt_ids(c, n, n) for n in lengths]
        wants = [c.generate(p, max_tokens=24, **GREEDY).ids for p in prompts]
        assert all(len(ids) == 24 for ids in wants)
        began, rounds, survived, all_requests = time.monotonic(), 0, 0, 0
        while rounds == 0 or time.monotonic() - began < seconds:
            requests = [c.submit(p, max_tokens=24, **GREEDY) for p in prompts]
            for _ in range(rng.choice([1, 1, 2])):
                time.sleep(rng.random() * 0.4)
                hit(rng, rng.choice(c.prefill + c.decode))
            survived += sum(judge(r.result(), want) for r, want in zip(requests, wants))
            all_requests += len(requests)
            rounds += 1
            c.wait_ready()
        print("  %d rounds, %d of %d requests survived" % (rounds, survived, all_requests))
        assert [c.generate(p, max_tokens=24, **GREEDY).ids for p in prompts] == wants
        assert survived > all_requests // 4, "a storm that nobody survives proves little"
        c.wait_idle(15)
        no_poison(c)
        c.check_exits()


def kills_and_stops_in_mid_transfer_change_no_surviving_text_over_shm(args):
    storm(args, "shm")


def kills_and_stops_in_mid_transfer_change_no_surviving_text_over_tcp(args):
    storm(args, "tcp")


def a_long_storm_changes_no_surviving_text_over_shm(args):
    storm(args, "shm", 10 * STORM_SECONDS)


def a_long_storm_changes_no_surviving_text_over_tcp(args):
    storm(args, "tcp", 10 * STORM_SECONDS)


# ---- leases ----

def served_pages(cluster):
    return cluster.prefill[0].metric("tandem_kv_pages", state="served")


def stalled(args, lease, **more):
    """A decode daemon whose second get hangs until the transfer layer tries a fresh endpoint, 5 s later; all pages of
    a prompt are announced when it is computed."""
    return Cluster(args.bin, model=args.model,
                   prefill_flags=["--lease", lease, "--debug-poison", "--chunk", "1024", "--layer-group", "256"],
                   decode_flags=["--debug-poison", "--debug-faults", "stall:2"], **more)


def a_stopped_decode_loses_its_lease_and_nothing_leaks(args):
    with stalled(args, "1s") as c:
        request = c.submit(prompt_ids(c, 700), max_tokens=8, **GREEDY)
        wait_for(lambda: served_pages(c) == 11, 20, "the prompt's pages are not served")
        time.sleep(2.0)
        assert served_pages(c) == 11 and "lease_end" not in c.prefill[0].log(), "the decode daemon renews the lease"
        c.decode[0].pause()
        wait_for(lambda: served_pages(c) == 0, 5, "the lease does not end\n" + c.prefill[0].tail())
        line = [x for x in c.prefill[0].log().splitlines() if "prompt.lease_end" in x]
        assert len(line) == 1 and "peer=%s remote=127.0.0.1:" % c.decode[0].listen in line[0], line
        answer = request.result()
        assert answer.code == grpc.StatusCode.UNAVAILABLE and not answer.ids, answer
        c.decode[0].resume()
        c.wait_ready()
        c.wait_idle(10)
        assert c.generate(prompt_ids(c, 700), max_tokens=8, **GREEDY).ok
        c.wait_idle()
        no_poison(c)
        c.check_exits()


def a_prefill_that_was_stopped_itself_does_not_end_its_leases_at_once(args):
    with stalled(args, "2s", router_flags=["--heartbeat-timeout", "10s"]) as c:
        c.decode[0].kill()
        c.decode[0].start(c.decode[0].flags + ["--peer-timeout", "10s"])
        c.wait_ready()
        request = c.submit(prompt_ids(c, 700), max_tokens=8, **GREEDY)
        wait_for(lambda: served_pages(c) == 11, 20, "the prompt's pages are not served")
        c.prefill[0].pause()
        time.sleep(2.6)
        c.prefill[0].resume()
        answer = request.result()
        assert answer.ok and len(answer.ids) == 8, answer
        assert "lease_end" not in c.prefill[0].log(), c.prefill[0].tail()
        c.wait_idle(10)
        c.check_exits()


def a_cancelled_request_gives_its_served_pages_back_at_once(args):
    with stalled(args, "60s") as c:
        request = c.submit(prompt_ids(c, 700), max_tokens=8, **GREEDY)
        wait_for(lambda: served_pages(c) == 11, 20, "the prompt's pages are not served")
        request.cancel()
        c.wait_idle(3)
        no_poison(c)
        c.check_exits()


# ---- drains ----

def a_draining_prefill_keeps_its_pages_until_they_are_drawn(args):
    with stalled(args, "10s") as c:
        want = None
        request = c.submit(prompt_ids(c, 700), max_tokens=8, **GREEDY)
        wait_for(lambda: served_pages(c) == 11, 20, "the prompt's pages are not served")
        ended = []
        thread = threading.Thread(target=lambda: ended.append(c.prefill[0].terminate()))
        thread.start()
        time.sleep(1.0)
        assert not ended, "it has ended with pages that nobody has drawn yet"
        refused = c.generate(prompt_ids(c, 65), max_tokens=8, **GREEDY)  # no new work
        assert refused.code == grpc.StatusCode.UNAVAILABLE, refused
        answer = request.result()
        assert answer.ok and len(answer.ids) == 8, answer
        thread.join(10)
        assert ended == [0], (ended, c.prefill[0].tail())
        c.prefill[0].start()
        c.wait_ready()
        want = c.generate(prompt_ids(c, 700), max_tokens=8, **GREEDY)
        assert want.ids == answer.ids, (want, answer)
        c.wait_idle()
        no_poison(c)
        c.check_exits()


def every_daemon_drains_while_requests_run(args):
    with Cluster(args.bin, model=args.model) as c:
        prompt = prompt_ids(c, 65)
        want = c.generate(prompt, max_tokens=200, **GREEDY).ids
        requests = [c.submit(prompt, max_tokens=200, **GREEDY).wait_token() for _ in range(3)]
        codes = {}
        threads = [threading.Thread(target=lambda d=d: codes.update({d.name: d.terminate()})) for d in c.daemons]
        for thread in threads:
            thread.start()
        answers = [r.result() for r in requests]
        assert all(a.ok and a.ids == want for a in answers), answers
        for thread in threads:
            thread.join(10)
        assert set(codes.values()) == {0} and len(codes) == 3, codes


# ---- who was stopped himself ----

def a_router_that_was_stopped_does_not_blame_its_workers(args):
    with Cluster(args.bin, model=args.model) as c:
        prompt, n = prompt_ids(c, 65), 600 if is_sanitized(args.bin) else 1500
        want = c.generate(prompt, max_tokens=n, **GREEDY).ids
        request = c.submit(prompt, max_tokens=n, **GREEDY).wait_token()
        for _ in range(2):
            c.router.pause()
            time.sleep(2.0)  # two heartbeats' deadlines
            c.router.resume()
            time.sleep(0.2)
        answer = request.result()
        assert answer.ok and answer.ids == want, answer
        assert "worker.lost" not in c.router.log(), c.router.tail()
        c.wait_idle()


# ---- names ----

def two_clients_may_choose_the_same_request_id(args):
    with Cluster(args.bin, model=args.model) as c:
        prompts = [prompt_ids(c, n, n) for n in (70, 300, 70, 500)]
        wants = [c.generate(p, max_tokens=30, **GREEDY).ids for p in prompts]
        requests = [c.submit(p, max_tokens=30, request_id="the-same", **GREEDY) for p in prompts]
        answers = [r.result() for r in requests]
        assert [a.ids for a in answers] == wants, answers
        first = c.submit(prompts[1], max_tokens=2000, request_id="again", **GREEDY)
        second = c.submit(prompts[0], max_tokens=30, request_id="again", **GREEDY)
        first.wait_token().cancel()  # ends only one of them
        assert second.result().ids == wants[0]
        c.wait_idle()


if __name__ == "__main__":
    run()
