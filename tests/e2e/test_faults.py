"""What happens to requests when pages are damaged, clients leave and daemons die or stop: the others go on, unchanged."""
import random
import threading
import time

import grpc

from harness import Cluster, admin_pb2, arguments, is_sanitized, run
from reference import continuation, prompt_ids

GREEDY = dict(temperature=0, ignore_eos=True)


def _transports(args):
    """UCX is not built with sanitizers: one of its ways tells them as much as two."""
    return ("shm",) if is_sanitized(args.bin) else ("shm", "tcp")


def flags(transport, *more):
    return ["--transport", transport, "--debug-poison"] + list(more)


def no_poison(cluster):
    for d in cluster.prefill + cluster.decode:
        assert "kv.poison" not in d.log() and "free page" not in d.log(), d.tail()


def links(cluster):
    return [e.link for e in cluster.admin().ListLinks(admin_pb2.ListLinksRequest(), timeout=5).links
            if e.link.role == "reader"]


# ---- damaged pages ----

def damage(args, transport, fault):
    c = Cluster(args.bin, model=args.model, prefill_flags=flags(transport, "--ranks", "2"),
                decode_flags=flags(transport, "--drafts", "2", "--debug-faults", fault))
    return c


def a_page_damaged_once_is_fetched_again_and_the_text_is_unchanged(args):
    for transport in _transports(args):
        with damage(args, transport, "damage:3") as c:
            prompt = prompt_ids(c, 700)
            answer = c.generate(prompt, max_tokens=24, **GREEDY)
            assert answer.ok, answer
            assert answer.ids == continuation(args, prompt, 24, ["--ranks", "2", "--drafts", "2"])
            assert sum(x.crc_mismatches for x in links(c)) == 1 and sum(x.refetched_pages for x in links(c)) == 1
            c.wait_idle()
            no_poison(c)
            c.check_exits()


def a_page_damaged_twice_fails_the_request_and_is_named(args):
    for transport in _transports(args):
        with damage(args, transport, "damage:3:2") as c:
            prompt = prompt_ids(c, 700)
            answer = c.generate(prompt, max_tokens=24, **GREEDY)
            assert answer.code == grpc.StatusCode.DATA_LOSS and "page" in answer.details, answer
            c.wait_idle()
            again = c.generate(prompt, max_tokens=24, **GREEDY)  # nothing of it stays behind
            assert again.ok and again.ids == continuation(args, prompt, 24, ["--ranks", "2", "--drafts", "2"]), again
            c.wait_idle()
            no_poison(c)


# ---- clients that leave ----

def a_storm_of_cancels_leaves_the_others_unchanged(args):
    rng = random.Random(args.seed)
    for transport in _transports(args):
        with Cluster(args.bin, model=args.model, prefill_flags=flags(transport, "--ranks", "2", "--chunk", "128"),
                     decode_flags=flags(transport, "--drafts", "2")) as c:
            stay = [prompt_ids(c, n, n) for n in (65, 300, 700)]
            want = [c.generate(p, max_tokens=40, **GREEDY).ids for p in stay]
            going = [c.submit(p, max_tokens=40, **GREEDY) for p in stay]
            leaving = []
            for _ in range(60):
                leaving.append(c.submit(prompt_ids(c, rng.choice([1, 64, 200, 900])), max_tokens=200, **GREEDY))
                time.sleep(rng.random() * 0.03)
                rng.choice(leaving).cancel()
            for request in leaving:
                request.cancel()
            for request, ids in zip(going, want):
                answer = request.result()
                assert answer.ok and answer.ids == ids, answer
            c.wait_idle(10)
            no_poison(c)
            c.check_exits()


# ---- daemons that die or stop ----

def two_by_two(args, transport, **more):
    return Cluster(args.bin, model=args.model, n_prefill=2, n_decode=2,
                   prefill_flags=flags(transport, "--chunk", "64", "--layer-group", "1"),
                   decode_flags=flags(transport, "--drafts", "2"), **more)


def used_by(cluster, kind):
    """The workers of a kind that hold a request now."""
    return [d for d in getattr(cluster, kind) if d.running() and not d.stopped and d.metric("tandem_requests_active") > 0]


def wait_used(cluster, kind, timeout=5):
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        found = used_by(cluster, kind)
        if found:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no %s daemon took the request" % kind)


def lose(args, kind, how):
    """A worker is lost while it holds a request that has not streamed: it is started once more and ends right."""
    for transport in _transports(args):
        with two_by_two(args, transport) as c:
            prompt = prompt_ids(c, 500 if is_sanitized(args.bin) else 1500)
            want = c.generate(prompt, max_tokens=20, **GREEDY)
            assert want.ok, want
            request = c.submit(prompt, max_tokens=20, **GREEDY)
            victim = wait_used(c, kind)
            time.sleep(0.1)
            getattr(victim, how)()
            answer = request.result()
            assert answer.ok and answer.ids == want.ids, answer
            if how == "pause":
                victim.resume()
            else:
                victim.start().wait_ready()
            c.wait_ready()
            c.wait_idle(15)
            after = [c.generate(prompt, max_tokens=20, **GREEDY) for _ in range(4)]
            assert all(a.ok and a.ids == want.ids for a in after), after
            no_poison(c)


def a_killed_prefill_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "prefill", "kill")


def a_killed_decode_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "decode", "kill")


def a_stopped_prefill_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "prefill", "pause")


def a_stopped_decode_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "decode", "pause")


def a_stream_whose_decode_dies_ends_unavailable_within_two_seconds(args):
    for how in ("kill", "pause"):
        with two_by_two(args, "shm", router_flags=["--heartbeat-timeout", "1s"]) as c:
            others = prompt_ids(c, 65)
            want = c.generate(others, max_tokens=300, **GREEDY).ids
            request = c.submit(prompt_ids(c, 100), max_tokens=4000, **GREEDY).wait_token()
            victim = wait_used(c, "decode")
            beside = c.submit(others, max_tokens=300, **GREEDY)  # goes to the other decode daemon: less loaded
            beside.wait_token()
            getattr(victim, how)()
            begun = time.monotonic()
            answer = request.result()
            assert answer.code == grpc.StatusCode.UNAVAILABLE, answer
            assert time.monotonic() - begun < 2.0 + 1.0, answer  # promised: 2 s; slack for a busy machine
            assert beside.result().ids == want
            if how == "pause":
                victim.resume()
            else:
                victim.start().wait_ready()
            c.wait_ready()
            c.wait_idle(15)
            no_poison(c)


def without_another_pair_a_lost_worker_ends_the_request_unavailable(args):
    for kind in ("prefill", "decode"):
        with Cluster(args.bin, model=args.model, prefill_flags=flags("shm", "--chunk", "64"),
                     decode_flags=flags("shm")) as c:
            request = c.submit(prompt_ids(c, 2000), max_tokens=20, **GREEDY)
            victim = wait_used(c, kind)
            victim.kill()
            begun = time.monotonic()
            answer = request.result()
            assert answer.code == grpc.StatusCode.UNAVAILABLE, answer
            assert time.monotonic() - begun < 2.0 + 1.0, answer
            victim.start().wait_ready()
            ready = time.monotonic()
            while not c.generate(prompt_ids(c, 65), max_tokens=4, **GREEDY).ok:
                assert time.monotonic() - ready < 2.0 + 1.0, "not served again within 2 seconds of ready\n" + c.logs()
                time.sleep(0.05)
            c.wait_idle(15)


def a_prefill_that_dies_after_the_pages_are_drawn_is_not_missed(args):
    with Cluster(args.bin, model=args.model, prefill_flags=flags("shm"), decode_flags=flags("shm")) as c:
        prompt = prompt_ids(c, 65)
        want = c.generate(prompt, max_tokens=600, **GREEDY)
        request = c.submit(prompt, max_tokens=600, **GREEDY).wait_token()
        c.prefill[0].kill()
        answer = request.result()
        assert answer.ok and answer.ids == want.ids, answer


def a_stopped_worker_is_noticed_within_the_heartbeats_deadline(args):
    with Cluster(args.bin, model=args.model, router_flags=["--heartbeat-timeout", "1s"]) as c:
        for victim in (c.decode[0], c.prefill[0]):
            victim.pause()
            begun = time.monotonic()
            while all(w.reachable for w in c.status().workers):
                assert time.monotonic() - begun < 1.0 + 0.25 + 1.0, "not noticed"
                time.sleep(0.02)
            lost = {w.address: w.why for w in c.status().workers if not w.reachable}
            assert list(lost) == [victim.listen] and "heartbeat" in lost[victim.listen], lost
            victim.resume()
            c.wait_ready(10)


# ---- drain ----

def a_drained_worker_finishes_what_runs_and_takes_nothing_new(args):
    with two_by_two(args, "shm") as c:
        prompt = prompt_ids(c, 65)
        want = c.generate(prompt, max_tokens=400, **GREEDY)
        request = c.submit(prompt, max_tokens=400, **GREEDY).wait_token()
        victim = wait_used(c, "decode")
        ended = []
        thread = threading.Thread(target=lambda: ended.append(victim.terminate()))
        thread.start()
        time.sleep(0.5)
        more = [c.generate(prompt, max_tokens=10, **GREEDY) for _ in range(4)]
        assert all(a.ok for a in more), more
        answer = request.result()
        assert answer.ok and answer.ids == want.ids, answer
        thread.join(20)
        assert ended == [0], (ended, victim.tail())


if __name__ == "__main__":
    run([a_page_damaged_once_is_fetched_again_and_the_text_is_unchanged,
         a_page_damaged_twice_fails_the_request_and_is_named,
         a_storm_of_cancels_leaves_the_others_unchanged,
         a_killed_prefill_costs_a_request_that_has_not_streamed_nothing,
         a_killed_decode_costs_a_request_that_has_not_streamed_nothing,
         a_stopped_prefill_costs_a_request_that_has_not_streamed_nothing,
         a_stopped_decode_costs_a_request_that_has_not_streamed_nothing,
         a_stream_whose_decode_dies_ends_unavailable_within_two_seconds,
         without_another_pair_a_lost_worker_ends_the_request_unavailable,
         a_prefill_that_dies_after_the_pages_are_drawn_is_not_missed,
         a_stopped_worker_is_noticed_within_the_heartbeats_deadline,
         a_drained_worker_finishes_what_runs_and_takes_nothing_new], arguments())
