"""What happens to requests when pages are damaged, clients leave and daemons die or stop: the others go on, unchanged."""
import random
import re
import threading
import time

import grpc

from harness import Cluster, admin_pb2, is_sanitized, run, skip
from reference import continuation, prompt_ids

GREEDY = dict(temperature=0, ignore_eos=True)


def _transports(args):
    """UCX is not built with sanitizers: one of its ways tells them as much as two."""
    return ("ring",) if is_sanitized(args.bin) else ("shm", "tcp", "ring")


def _sized(args, n, sanitized):
    """Under a sanitizer computing takes ten times as long, and less of it will do."""
    return sanitized if is_sanitized(args.bin) else n


def flags(transport, *more):
    """ring: shared memory, and pages that go through the ring as a GPU's do."""
    ways = ["--transport", "shm", "--kv-path", "ring"] if transport == "ring" else ["--transport", transport]
    return ways + ["--debug-poison"] + list(more)


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
            prompt = prompt_ids(c, _sized(args, 700, 300))
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
            prompt = prompt_ids(c, _sized(args, 700, 300))
            answer = c.generate(prompt, max_tokens=24, **GREEDY)
            assert answer.code == grpc.StatusCode.DATA_LOSS, answer
            named = re.search(r"page (\d+), layers (\d+) to (\d+) \(.* from %s rank ([01]) came damaged twice"
                              % re.escape(c.prefill[0].listen), answer.details)
            assert named, answer
            page, first, last, rank = map(int, named.groups())
            assert page <= 10 and rank == page % 2 and first <= last <= 3, answer  # 700 tokens, two ranks
            c.wait_idle()
            again = c.generate(prompt, max_tokens=24, **GREEDY)  # nothing of it stays behind
            assert again.ok and again.ids == continuation(args, prompt, 24, ["--ranks", "2", "--drafts", "2"]), again
            c.wait_idle()
            no_poison(c)


def a_hidden_state_damaged_twice_is_named_as_such(args):
    """The last range of a prompt of one page, which has as many before it as there are announcements of layers."""
    for nth in range(2, 12):
        with Cluster(args.bin, model=args.model, prefill_flags=flags("shm"),
                     decode_flags=flags("shm", "--debug-faults", "damage:%d:2" % nth)) as c:
            answer = c.generate(prompt_ids(c, 60), max_tokens=8, **GREEDY)
            assert answer.code == grpc.StatusCode.DATA_LOSS, answer
            c.wait_idle()
            if "hidden state (" in answer.details and "from %s rank 0" % c.prefill[0].listen in answer.details:
                return
            assert "page 0, layers" in answer.details, answer
    raise AssertionError("no range was the hidden state's")


# ---- clients that leave ----

def a_storm_of_cancels_leaves_the_others_unchanged(args):
    rng = random.Random(args.seed)
    for transport in _transports(args):
        with Cluster(args.bin, model=args.model, prefill_flags=flags(transport, "--ranks", "2", "--chunk", "128"),
                     decode_flags=flags(transport, "--drafts", "2")) as c:
            stay = [prompt_ids(c, n, n) for n in (65, 300, _sized(args, 700, 150))]
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
                   prefill_flags=flags(transport, "--chunk", "64", "--layer-group", "1", "--lease", "3s"),
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


def drawn(decode):
    """Bytes of KV that it has drawn, of the request under way too."""
    return decode.metric("tandem_kv_read_bytes_total")


def lose(args, kind, how):
    """A worker is lost while it holds a request that has not streamed: it is started once more and ends right."""
    for transport in _transports(args):
        with two_by_two(args, transport) as c:
            prompt = prompt_ids(c, _sized(args, 2500, 500))
            want = c.generate(prompt, max_tokens=20, **GREEDY)
            assert want.ok, want
            before = {d: drawn(d) for d in c.decode}
            request = c.submit(prompt, max_tokens=20, **GREEDY)
            victim = wait_used(c, kind)
            until = time.monotonic() + 20
            while not any(drawn(d) > before[d] for d in c.decode):  # in mid-transfer
                assert time.monotonic() < until, c.logs()
            assert victim.metric("tandem_requests_active") == 1 and not request.streaming.is_set()
            getattr(victim, how)()
            answer = request.result()
            assert answer.ok and answer.ids == want.ids, answer
            assert c.router.metric("tandem_requests_retried_total") == 1, c.router.tail()
            if how == "pause":
                victim.resume()
            else:
                victim.start().wait_ready()
            c.wait_ready()
            c.wait_idle(15)
            short = prompt_ids(c, 65)
            after = [c.generate(short, max_tokens=20, **GREEDY) for _ in range(4)]
            assert all(a.ok and a.ids == after[0].ids for a in after), after
            no_poison(c)


def a_killed_prefill_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "prefill", "kill")


def a_killed_decode_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "decode", "kill")


def a_stopped_prefill_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "prefill", "pause")


def a_stopped_decode_costs_a_request_that_has_not_streamed_nothing(args):
    lose(args, "decode", "pause")


def _in_time(args, begun, promised=2.0):
    """Half a second for a machine that has other things to do; a sanitizer's daemons are several times slower."""
    return time.monotonic() - begun < promised + (1.0 if is_sanitized(args.bin) else 0.5)


def a_stream_whose_decode_dies_ends_unavailable_within_two_seconds(args):
    for how in ("kill", "pause"):
        with two_by_two(args, "shm", router_flags=["--heartbeat-timeout", "1s"]) as c:
            others = prompt_ids(c, 65)
            want = c.generate(others, max_tokens=_sized(args, 300, 150), **GREEDY).ids
            request = c.submit(prompt_ids(c, 100), max_tokens=4000, **GREEDY).wait_token()
            victim = wait_used(c, "decode")
            # The other decode daemon is less loaded.
            beside = c.submit(others, max_tokens=_sized(args, 300, 150), **GREEDY)
            beside.wait_token()
            getattr(victim, how)()
            begun = time.monotonic()
            answer = request.result()
            assert answer.code == grpc.StatusCode.UNAVAILABLE, answer
            assert _in_time(args, begun), answer
            assert beside.result().ids == want
            if how == "pause":
                victim.resume()
            else:
                victim.start().wait_ready()
            c.wait_ready()
            c.wait_idle(15)
            no_poison(c)


def without_another_pair_a_lost_worker_ends_the_request_unavailable(args):
    for kind, how in (("prefill", "kill"), ("decode", "kill"), ("prefill", "pause"), ("decode", "pause")):
        with Cluster(args.bin, model=args.model, router_flags=["--heartbeat-timeout", "1s"],
                     prefill_flags=flags("shm", "--chunk", "64", "--layer-group", "1"),
                     decode_flags=flags("shm", "--peer-timeout", "1s")) as c:
            request = c.submit(prompt_ids(c, _sized(args, 2500, 500)), max_tokens=20, **GREEDY)
            victim = wait_used(c, kind)
            until = time.monotonic() + 20
            while drawn(c.decode[0]) == 0:  # in mid-transfer
                assert time.monotonic() < until, c.logs()
            getattr(victim, how)()
            begun = time.monotonic()
            answer = request.result()
            assert answer.code == grpc.StatusCode.UNAVAILABLE and not answer.ids, answer
            assert _in_time(args, begun), (kind, how, answer)
            if how == "pause":
                victim.resume()
            else:
                victim.start()
            victim.wait_ready()
            ready = time.monotonic()
            while not c.generate(prompt_ids(c, 65), max_tokens=4, **GREEDY).ok:
                assert _in_time(args, ready), "not served again within 2 seconds of ready\n" + c.logs()
                time.sleep(0.05)
            c.wait_idle(15)


def a_prefill_that_dies_after_the_pages_are_drawn_is_not_missed(args):
    with Cluster(args.bin, model=args.model, prefill_flags=flags("shm"), decode_flags=flags("shm")) as c:
        prompt = prompt_ids(c, 65)
        want = c.generate(prompt, max_tokens=_sized(args, 600, 200), **GREEDY)
        request = c.submit(prompt, max_tokens=_sized(args, 600, 200), **GREEDY).wait_token()
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


# ---- pages that are free ----

def flip_free_byte(daemon):
    """Changes a byte of a page that is free, as a late write would.

    Neighbouring mappings are shown as one, so the pool may begin and end anywhere within a span: each is searched in
    steps smaller than any pool. Spans that no pool of the tests fills (an address sanitizer's shadow) are left alone.
    """
    poison = bytes.fromhex("fd7ffdfffd7ffdff") * 512
    step, largest = 64 << 10, 4 << 30
    with open("/proc/%d/maps" % daemon.process.pid) as f:
        spans = [line.split()[0] for line in f if " rw-p 00000000 00:00 0" in line]
    with open("/proc/%d/mem" % daemon.process.pid, "r+b", buffering=0) as memory:
        for begin, end in ((int(x, 16) for x in span.split("-")) for span in spans):
            for at in range(begin, end if end - begin <= largest else begin, step):
                memory.seek(at)
                try:
                    found = memory.read(len(poison)) == poison
                except OSError:  # the span is gone
                    break
                if found:
                    memory.seek(at + 100)
                    memory.write(b"\0")
                    return
    raise AssertionError("no page of the pool was found")


def a_late_write_into_a_free_page_fails_the_daemons_exit(args):
    for kind in ("prefill", "decode"):
        with Cluster(args.bin, model=args.model, prefill_flags=flags("shm"), decode_flags=flags("shm")) as c:
            assert c.generate(prompt_ids(c, 65), max_tokens=4, **GREEDY).ok
            c.wait_idle()
            victim = getattr(c, kind)[0]
            try:
                flip_free_byte(victim)
            except PermissionError:
                skip("this user may not write into other processes' memory")
            codes = c.terminate()
            assert codes.pop(victim.name) == 1 and set(codes.values()) == {0}, codes
            log = victim.log()
            assert log.count("kv.poison") == 1 and "was written to, first at byte" in log, victim.tail()
            c.daemons.remove(victim)  # its exit is no crash


# ---- overlap ----

def pages_travel_while_later_layers_compute(args):
    """With the default layer-group, also for a model of few layers and a prompt of one chunk."""
    with Cluster(args.bin, model=args.model, prefill_flags=["--chunk", "1024"]) as c:
        assert c.generate(prompt_ids(c, 1000), max_tokens=4, **GREEDY).ok
        early = c.decode[0].metric("tandem_kv_drawn_early_bytes_total")
        all_bytes = c.decode[0].metric("tandem_kv_drawn_bytes_total")
        assert early >= all_bytes / 5, (early, all_bytes)
        assert c.prefill[0].metric("tandem_kv_served_bytes_total") == all_bytes
        assert c.decode[0].metric("tandem_kv_links", transport="shm") == 1
        source = [e.link for e in c.admin().ListLinks(admin_pb2.ListLinksRequest(), timeout=5).links
                  if e.link.role == "source"]
        assert [(x.state, x.bytes) for x in source] == [("up", all_bytes)], source
        c.wait_idle()
        c.decode[0].kill()
        until = time.monotonic() + 5
        while c.prefill[0].metric("tandem_kv_readers") != 0:
            assert time.monotonic() < until, "a dead reader is shown as connected"
            time.sleep(0.02)
        states = [e.link.state for e in c.admin().ListLinks(admin_pb2.ListLinksRequest(), timeout=5).links
                  if e.link.role == "source"]
        assert states == ["closed"], states


# ---- drain ----

def a_drained_worker_finishes_what_runs_and_takes_nothing_new(args):
    with two_by_two(args, "shm") as c:
        prompt = prompt_ids(c, 65)
        want = c.generate(prompt, max_tokens=_sized(args, 400, 200), **GREEDY)
        request = c.submit(prompt, max_tokens=_sized(args, 400, 200), **GREEDY).wait_token()
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
    run()
