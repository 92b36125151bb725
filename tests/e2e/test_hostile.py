"""What broken and hostile clients, workers and routers send: a clear refusal, and nobody else notices."""
import concurrent.futures
import contextlib
import os
import random
import socket
import struct
import threading
import time

import grpc

from harness import Cluster, inference_pb2, is_sanitized, make_request, open_channel, run
from reference import prompt_ids
from tandem.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc

Code = grpc.StatusCode
GREEDY = dict(temperature=0, ignore_eos=True)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


# ---- HTTP/2 by hand ----

def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header field without indexing and without Huffman codes (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_headers(path, more=()):
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"test"),
              (b"te", b"trailers"), (b"content-type", b"application/grpc")] + list(more)
    return b"".join(literal(n, v) for n, v in fields)


def grpc_message(message):
    raw = message if isinstance(message, bytes) else message.SerializeToString()
    return b"\x00" + struct.pack(">I", len(raw)) + raw


def connect(address):
    host, port = address.rsplit(":", 1)
    s = socket.create_connection((host, int(port)), timeout=10)
    s.settimeout(60)
    return s


def take(s, n):
    got = b""
    while len(got) < n:
        more = s.recv(n - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def frames(s):
    """(kind, flags, stream, payload) of what the server sends; settings and pings are acknowledged."""
    while True:
        head = take(s, 9)
        n = int.from_bytes(head[:3], "big")
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        payload = take(s, n)
        if kind == SETTINGS and not flags & ACK:
            s.sendall(frame(SETTINGS, ACK, 0))
        if kind == PING and not flags & ACK:
            s.sendall(frame(PING, ACK, 0, payload))
        yield kind, flags, stream, payload


def begin_generate(router, request, window=0):
    """A Generate whose client grants the server so many bytes of answer, and no more."""
    s = connect(router.listen)
    s.sendall(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, window)) +
              frame(HEADERS, END_HEADERS, 1, call_headers(b"/tandem.v1.Inference/Generate")) +
              frame(DATA, END_STREAM, 1, grpc_message(request)))
    return s


# ---- clients that do not read ----

def a_client_that_does_not_read_is_cut_off_and_everything_else_goes_on(args):
    with Cluster(args.bin, model=args.model, router_flags=["--backlog", "16KiB"], decode_flags=["--drafts", "4"]) as c:
        prompt, n = prompt_ids(c, 65), 100 if is_sanitized(args.bin) else 400
        want = c.generate(prompt, max_tokens=n, **GREEDY)
        deaf = begin_generate(c.router, make_request(prompt, max_tokens=6000, **GREEDY))
        beside = c.submit(prompt, max_tokens=n, **GREEDY)
        end = next((f for f in frames(deaf) if f[0] == RST_STREAM and f[2] == 1), None)
        assert end is not None and struct.unpack(">I", end[3])[0] == 0xb, end  # ENHANCE_YOUR_CALM
        assert beside.result().ids == want.ids
        assert "rpc.call.cut_off" in c.router.log() and "RESOURCE_EXHAUSTED" in c.router.log()
        c.wait_idle()  # decode has stopped, too
        deaf.close()
        c.check_exits()


def a_draining_router_waits_for_the_last_bytes_to_be_read(args):
    with Cluster(args.bin, model=args.model) as c:
        late = begin_generate(c.router, make_request(prompt_ids(c, 65), max_tokens=4, **GREEDY))
        until = time.monotonic() + 20
        while "status=OK" not in c.router.log():
            assert time.monotonic() < until, c.router.tail()
            time.sleep(0.02)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            ending = pool.submit(c.router.terminate)
            time.sleep(0.4)
            assert not ending.done()
            late.sendall(frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", 65535)))
            got, ended = b"", False
            with contextlib.suppress(EOFError):
                for kind, flags, stream, payload in frames(late):
                    got += payload if kind == DATA else b""
                    ended = ended or (kind == HEADERS and stream == 1 and flags & END_STREAM != 0)
            assert ended, "no trailers"
            assert ending.result(10) == 0
        ids, finish = [], ""
        while got:
            n = struct.unpack(">I", got[1:5])[0]
            message = inference_pb2.GenerateResponse.FromString(got[5:5 + n])
            ids, finish, got = ids + list(message.token_ids), message.finish_reason, got[5 + n:]
        assert len(ids) == 4 and finish == "length", (ids, finish)


# ---- broken bytes ----

def broken_starts(rng):
    settings = PREFACE + frame(SETTINGS, 0, 0)
    headers = call_headers(b"/tandem.v1.Inference/Generate")
    return [
        rng.randbytes(300),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE[:10],
        PREFACE + rng.randbytes(500),
        settings + frame(SETTINGS, 0, 0, b"\x00\x04\xff"),                   # not a multiple of six
        settings + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0xffffffff)),  # a window over 2^31-1
        settings + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),   # HPACK: no such index
        settings + frame(HEADERS, END_HEADERS, 2, headers),                   # an even stream
        settings + frame(HEADERS, 0, 1, headers) + frame(DATA, 0, 1, b"x"),   # no CONTINUATION
        settings + frame(CONTINUATION, END_HEADERS, 1, headers),
        settings + frame(DATA, END_STREAM, 1, b"x" * 100),                    # an idle stream
        settings + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
        settings + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 70000,    # a frame of 16 MiB
        settings + frame(PING, 0, 0, b"short"),
        settings + frame(RST_STREAM, 0, 1, b"\0\0\0\0"),
        settings + b"".join(frame(PING, 0, 0, b"12345678") for _ in range(20000)),
        settings + b"".join(frame(HEADERS, END_HEADERS, i, headers) + frame(RST_STREAM, 0, i, b"\0\0\0\x08")
                            for i in range(1, 4001, 2)),
        settings + frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, b"\x00\xff\xff\xff\xff"),
        settings + frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, b"\x01\0\0\0\x01x"),
        settings + frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, grpc_message(b"\xff" * 50)),
        settings + frame(GOAWAY, 0, 0, b"\0" * 8) + frame(HEADERS, END_HEADERS, 1, headers),
    ]


def broken_bytes_at_every_port_are_refused_while_requests_run(args):
    rng = random.Random(args.seed)
    with Cluster(args.bin, model=args.model) as c:
        prompts = [prompt_ids(c, n) for n in (65, 400)]
        wants = [c.generate(p, max_tokens=300, **GREEDY).ids for p in prompts]
        requests = [c.submit(p, max_tokens=300, **GREEDY) for p in prompts]
        hanging = []
        for d in c.daemons:
            for address in (d.listen, d.admin):
                hanging += [connect(address) for _ in range(20)]  # never a word
                for start in broken_starts(rng):
                    with contextlib.suppress(ConnectionError, socket.timeout), connect(address) as s:
                        s.settimeout(0.05)
                        s.sendall(start)
                        s.recv(65536)
        assert [r.result().ids for r in requests] == wants
        for s in hanging:
            s.close()
        for d in c.daemons:
            assert d.serving() and d.http("/metrics")[0] == 200, d.name
        c.wait_idle()
        c.check_exits()


# ---- room for calls ----

def calls_that_let_go_of_requests_never_wait_behind_requests(args):
    """A worker's connection takes more calls at a time than the worker takes requests."""
    n = ["--max-requests", "1200"]
    with Cluster(args.bin, model=args.model, prefill_flags=n, decode_flags=n) as c:
        for d in c.prefill + c.decode:
            with connect(d.listen) as s:
                s.sendall(PREFACE + frame(SETTINGS, 0, 0))
                settings = next(payload for kind, flags, _, payload in frames(s) if kind == SETTINGS and not flags & ACK)
                values = dict(struct.unpack(">HI", settings[i:i + 6]) for i in range(0, len(settings), 6))
                assert values[3] >= 1200 + 32, (d.name, values)  # SETTINGS_MAX_CONCURRENT_STREAMS


# ---- messages ----

def refused(call, code, says=""):
    try:
        list(call)
    except grpc.RpcError as e:
        assert e.code() == code and says in e.details(), (e.code(), e.details(), code, says)
        return
    raise AssertionError("expected %s" % code)


def raw(channel, path, message):
    """The outcome of a call whose request is these bytes."""
    method = channel.unary_stream(path, request_serializer=lambda b: b, response_deserializer=lambda b: b)
    return method(message, timeout=20)


def oversize_and_malformed_messages_are_refused_at_every_daemon(args):
    with Cluster(args.bin, model=args.model) as c:
        going = c.submit(prompt_ids(c, 65), max_tokens=400, **GREEDY)
        paths = {c.router: ("/tandem.v1.Inference/Generate", 4), c.decode[0]: ("/tandem.v1.Decode/Generate", 16),
                 c.prefill[0]: ("/tandem.v1.Prefill/Prefill", 16)}
        for d, (path, limit) in paths.items():
            refused(raw(d.rpc(), path, b"\x12" + b"x" * ((limit << 20) + 1)), Code.RESOURCE_EXHAUSTED, "at most")
            refused(raw(d.rpc(), path, b"\xff" * 100), Code.INVALID_ARGUMENT, "malformed")
        generate = "/tandem.v1.Inference/Generate"
        text = b"\xc3\x28 is no UTF-8"
        refused(raw(c.router.rpc(), generate, b"\x12" + bytes([len(text)]) + text), Code.INVALID_ARGUMENT, "byte 0")
        # a million empty stop strings: two bytes each for the sender
        refused(raw(c.router.rpc(), generate, b"\x52\x00" * 1000000), Code.INVALID_ARGUMENT)
        refused(c.inference().Generate(make_request([5] * 5000000)), Code.RESOURCE_EXHAUSTED, "at most")
        refused(c.inference().Generate(make_request([5] * 1000000)), Code.INVALID_ARGUMENT, "context")
        refused(c.inference().Generate(make_request("word " * 400000)), Code.INVALID_ARGUMENT, "context")
        assert going.result().ok
        c.wait_idle()
        c.check_exits()


def decode_request(c, **fields):
    sampling = decode_pb2.Sampling(top_p=1.0)
    for name in list(fields):
        if hasattr(sampling, name):
            value = fields.pop(name)
            sampling.stop_token_ids.extend(value) if name == "stop_token_ids" else setattr(sampling, name, value)
    values = dict(request_id="x", token_ids=[5, 6, 7], max_tokens=4, sampling=sampling,
                  prefill_address=c.prefill[0].listen)
    values.update(fields)
    return decode_pb2.DecodeRequest(**values)


def hostile_numbers_are_refused_by_the_workers_themselves(args):
    top = 2**32 - 1
    with Cluster(args.bin, model=args.model) as c:
        stub = decode_pb2_grpc.DecodeStub(c.decode[0].rpc())
        invalid = [dict(max_tokens=top), dict(max_tokens=2**31), dict(max_tokens=0), dict(token_ids=[]),
                   dict(token_ids=[top]), dict(token_ids=[5] * 9000), dict(top_k=top), dict(min_tokens=top),
                   dict(temperature=float("nan")), dict(temperature=float("inf")), dict(temperature=-1.0),
                   dict(top_p=0.0), dict(top_p=float("nan")), dict(stop_token_ids=[top]),
                   dict(stop_token_ids=[5] * 65), dict(request_id=""), dict(request_id="a\nb"),
                   dict(request_id="x" * 65), dict(sampling=None), dict(prefill_address=""),
                   dict(prefill_address="no address"), dict(prefill_address="x" * 300 + ":1")]
        for fields in invalid:
            refused(stub.Generate(decode_request(c, **fields), timeout=10), Code.INVALID_ARGUMENT)
        refused(stub.Generate(decode_request(c)), Code.INVALID_ARGUMENT, "deadline")
        refused(stub.Generate(decode_request(c, prefill_incarnation="0" * 16), timeout=10), Code.UNAVAILABLE, "restarted")
        prefill = prefill_pb2_grpc.PrefillStub(c.prefill[0].rpc())
        incarnation = c.status().workers[0].status.incarnation
        ask = dict(request_id="x", incarnation=incarnation, token_ids=[5], number=7,
                   decode_incarnation=c.status().workers[1].status.incarnation, sampling=decode_pb2.Sampling(top_p=1.0))
        for code, fields in [(Code.FAILED_PRECONDITION, dict(decode_incarnation="0" * 16)),
                             (Code.FAILED_PRECONDITION, dict(decode_incarnation="")),
                             (Code.UNAVAILABLE, dict(incarnation="0" * 16)),
                             (Code.INVALID_ARGUMENT, dict(token_ids=[])), (Code.INVALID_ARGUMENT, dict(token_ids=[top])),
                             (Code.INVALID_ARGUMENT, dict(token_ids=[5] * 9000)),
                             (Code.INVALID_ARGUMENT, dict(sampling=None)),
                             (Code.INVALID_ARGUMENT, dict(sampling=decode_pb2.Sampling(top_p=1.0, top_k=top))),
                             (Code.INVALID_ARGUMENT, dict(sampling=decode_pb2.Sampling(top_p=1.0, min_tokens=top)))]:
            refused(prefill.Prefill(prefill_pb2.PrefillRequest(**dict(ask, **fields)), timeout=10), code)
        meant = dict(incarnation=incarnation, decode_incarnation="?")
        prefill.Release(prefill_pb2.ReleaseRequest(number=2**64 - 1, **meant), timeout=5)
        assert len(prefill.Renew(prefill_pb2.RenewRequest(numbers=range(4000), **meant), timeout=5).unknown) == 4000
        refused_at_once(prefill.Renew, prefill_pb2.RenewRequest(numbers=range(5000), **meant))
        for method, request in ((prefill.Release, prefill_pb2.ReleaseRequest()), (prefill.Renew, prefill_pb2.RenewRequest())):
            refused_at_once(method, request, Code.UNAVAILABLE)  # meant for another process
        for fields in (dict(), dict(incarnation="0" * 16), dict(address="a:1"), dict(incarnation="\u00e9" * 16)):
            refused_at_once(prefill.Connect, prefill_pb2.ConnectRequest(**fields))
        assert c.generate(prompt_ids(c, 65), max_tokens=4, **GREEDY).ok
        c.wait_idle()
        c.check_exits()


def refused_at_once(method, request, *codes):
    try:
        method(request, timeout=5)
    except grpc.RpcError as e:
        assert e.code() in (codes or (Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT)), e
        return
    raise AssertionError("it was not refused: %s" % request)


# ---- a prefill daemon that lies ----

END = object()


class Liar(prefill_pb2_grpc.PrefillServicer):
    """Shakes hands as the real prefill daemon would, then sends the events it was told to. A stream stays open until
    the decode daemon has had enough, or ends when the last event is END."""

    def __init__(self, real):
        self.real = prefill_pb2_grpc.PrefillStub(real.rpc())
        self.answer, self.change, self.events, self.n_ended = None, lambda answer: None, [], 0

    def Connect(self, request, context):
        self.answer = self.real.Connect(request, timeout=5)
        self.change(self.answer)
        return self.answer

    def Prefill(self, request, context):
        over = threading.Event()

        def end():
            self.n_ended += 1
            over.set()

        context.add_callback(end)
        for event in self.events:
            if event is END:
                return
            if not event.incarnation:
                event.incarnation = self.answer.incarnation
            yield event
        over.wait(20)

    def Release(self, request, context):
        return prefill_pb2.ReleaseResponse()

    def Renew(self, request, context):
        return prefill_pb2.RenewResponse(unknown=[2**64 - 1, 0], incarnation=self.answer.incarnation)


@contextlib.contextmanager
def liar_at(real):
    liar = Liar(real)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    prefill_pb2_grpc.add_PrefillServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield liar, "127.0.0.1:%d" % port
    finally:
        server.stop(0).wait()


def pages(**fields):
    values = dict(first_layer=0, last_layer=1, first_page=0, page_ids=[0], generations=[1], crc32c=[1])
    values.update(fields)
    return prefill_pb2.PrefillEvent(pages=prefill_pb2.PagesReady(**values))


def done(**fields):
    return prefill_pb2.PrefillEvent(done=prefill_pb2.PrefillDone(**fields))


def lies():
    """[(events, what the refusal says)], for a prompt of one page and a model of at least two layers."""
    top = 2**32 - 1
    foreign = pages()
    foreign.incarnation = "0" * 16
    return [
        ([END], "ended the stream before its last event"),
        ([prefill_pb2.PrefillEvent()], "neither pages nor the last one"),
        ([foreign], "of incarnation"),
        ([done(first_token=5)], "page 0: 0 of"),
        ([done(first_token=top)], "outside the vocabulary"),
        ([pages(page_ids=[])], "0 pages with 1 generations and 1 checksums"),
        ([pages(generations=[])], "1 pages with 0 generations and 1 checksums"),
        ([pages(crc32c=[1, 2])], "1 pages with 1 generations and 2 checksums"),
        ([pages(generations=[0])], "page 0 without a generation"),
        ([pages(first_page=top)], "of a prompt with 1"),
        ([pages(page_ids=[top])], "names slot %d" % top),
        ([pages(page_ids=[0, 1, 2], generations=[1] * 3, crc32c=[1] * 3)], "pages 0..3 of a prompt with 1"),
        ([pages(last_layer=0)], "layers 0..0 of"),
        ([pages(last_layer=top)], "layers 0..%d of" % top),
        ([pages(first_layer=1, last_layer=2)], "page 0: layers from 1 on, expected from 0 on"),
        ([pages(), pages()], "page 0: layers from 0 on, expected from 1 on"),
        ([pages(), done(first_token=5)], "page 0: 1 of"),
    ]


def a_lying_prefill_hurts_only_its_own_request(args):
    top = 2**32 - 1
    with Cluster(args.bin, model=args.model, decode_flags=["--peer-timeout", "2s"]) as c:
        n = 700 if is_sanitized(args.bin) else 2000
        going = c.submit(prompt_ids(c, 65), max_tokens=n, **GREEDY).wait_token()
        stub = decode_pb2_grpc.DecodeStub(c.decode[0].rpc())
        handshakes = [lambda a: setattr(a, "ranks", 0), lambda a: setattr(a, "ranks", 65),
                      lambda a: setattr(a, "ranks", top), lambda a: a.rank_descriptor.pop(),
                      lambda a: a.rank_descriptor.__setitem__(0, b""),
                      lambda a: a.rank_descriptor.__setitem__(0, os.urandom(400)),
                      lambda a: setattr(a, "incarnation", "short"), lambda a: setattr(a, "incarnation", "0" * 16),
                      lambda a: setattr(a, "blob_bytes", 1), lambda a: a.fingerprint[0].ClearField("value"),
                      lambda a: a.fingerprint.extend(list(a.fingerprint) * 50)]
        for change in handshakes:
            with liar_at(c.prefill[0]) as (liar, address):
                liar.change = change
                call = stub.Generate(decode_request(c, prefill_address=address), timeout=10)
                try:
                    list(call)
                except grpc.RpcError as e:
                    assert e.code() in (Code.INTERNAL, Code.FAILED_PRECONDITION), e
                    continue
                raise AssertionError("a handshake that lies was believed")
        with liar_at(c.prefill[0]) as (liar, address):
            # a page that the real daemon has not announced: free, another's, or an older one of its own
            for liar.events in ([pages()], [pages(page_ids=[3], generations=[77])]):
                refused(stub.Generate(decode_request(c, prefill_address=address), timeout=10), Code.UNAVAILABLE,
                        "page 0, layers 0 to 0: %s rank 0 holds it no more" % address)
            c.prefill[0].pause()  # what is announced truly stays under way until the lie has been heard
            told = lies()
            for liar.events, says in told:
                refused(stub.Generate(decode_request(c, prefill_address=address), timeout=10), Code.INTERNAL, says)
            until = time.monotonic() + 5
            while liar.n_ended < 2 + len(told):  # the decode daemon has ended them
                assert time.monotonic() < until, liar.n_ended
                time.sleep(0.02)
            c.prefill[0].resume()
            c.wait_ready()
        with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never says a word
            address = "127.0.0.1:%d" % silent.getsockname()[1]
            begun = time.monotonic()
            refused(stub.Generate(decode_request(c, prefill_address=address), timeout=30), Code.UNAVAILABLE)
            assert time.monotonic() - begun < 6
        answer = going.result()
        assert answer.ok and len(answer.ids) == n, answer
        c.wait_idle()
        c.check_exits()


def a_decode_daemon_forgets_prefill_daemons_that_it_does_not_need(args):
    """More addresses than it has rows for."""
    with Cluster(args.bin, model=args.model) as c:
        stub = decode_pb2_grpc.DecodeStub(c.decode[0].rpc())
        for port in range(1, 100):
            try:
                list(stub.Generate(decode_request(c, prefill_address="127.0.0.1:%d" % port), timeout=10))
            except grpc.RpcError as e:
                assert e.code() in (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED), e
        assert c.generate(prompt_ids(c, 65), max_tokens=4, **GREEDY).ok
        c.wait_idle()
        c.check_exits()


if __name__ == "__main__":
    run()
