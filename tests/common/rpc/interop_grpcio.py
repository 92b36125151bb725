#!/usr/bin/python3
"""Python's grpcio (the distribution's python3-grpcio) against the echo server: argv[1] is the server program."""
import struct
import subprocess
import sys
import threading
import time

try:
    import grpc
except ImportError:
    print("skipped: no grpcio")
    sys.exit(77)

RAW = {"request_serializer": None, "response_deserializer": None}


def stream_args(n_messages, n_bytes, rude=0, pause_ms=0):
    return struct.pack("=IIII", n_messages, n_bytes, rude, pause_ms)


def fails_with(code, call):
    try:
        call()
    except grpc.RpcError as e:
        assert e.code() == code, (e.code(), code, e.details())
        return e
    raise AssertionError("expected %s" % code)


def check_unary(channel):
    unary = channel.unary_unary("/test.Echo/Unary", **RAW)
    for n in (0, 1, 1000, 100000, 3000000):
        body = bytes(i & 255 for i in range(min(n, 1000))) * (n // 1000) if n >= 1000 else b"x" * n
        assert unary(body) == body
    response, call = unary.with_call(b"hi", metadata=(("x-request-id", "abc-1"),))
    assert dict(call.initial_metadata())["x-echo"] == "abc-1" and call.code() == grpc.StatusCode.OK
    many = [unary.future(b"%d" % i) for i in range(500)]
    assert [f.result() for f in many] == [b"%d" % i for i in range(500)]


def check_statuses(channel):
    fail = channel.unary_unary("/test.Echo/Fail", **RAW)
    e = fails_with(grpc.StatusCode.NOT_FOUND, lambda: fail("5 weg: 100 % \u00fc\n".encode()))
    assert e.details() == "weg: 100 % \u00fc\n", e.details()
    for code in grpc.StatusCode:
        if code != grpc.StatusCode.OK:
            fails_with(code, lambda c=code: fail(b"%d x" % c.value[0]))
    fails_with(grpc.StatusCode.UNIMPLEMENTED, lambda: channel.unary_unary("/no.Such/Method", **RAW)(b""))
    unary = channel.unary_unary("/test.Echo/Unary", **RAW)
    fails_with(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: unary(b"x" * (4 * 1024 * 1024 + 1)))
    fails_with(grpc.StatusCode.UNIMPLEMENTED,
               lambda: unary(b"x" * 10000, compression=grpc.Compression.Gzip))


def check_streams(channel):
    stream = channel.unary_stream("/test.Echo/Stream", **RAW)
    got = list(stream(stream_args(3000, 50)))
    assert [struct.unpack("=I", m[:4])[0] for m in got] == list(range(3000))
    assert sum(map(len, stream(stream_args(100, 400000)))) == 100 * 400000
    bidi = channel.stream_stream("/test.Echo/Bidi", **RAW)
    sent = [b"m%d" % i * (i % 50) for i in range(1000)]
    assert list(bidi(iter(sent))) == sent
    swallow = channel.stream_unary("/test.Echo/Swallow", **RAW)
    assert swallow(b"x" * 10000 for _ in range(1000)) == b"10000000"
    early = channel.stream_stream("/test.Echo/Early", **RAW)

    def endless():
        while True:
            yield b"more"
            time.sleep(0.01)

    assert list(early(endless())) == [b"more"]


def check_cancel_and_deadline(channel):
    stream = channel.unary_stream("/test.Echo/Stream", **RAW)
    call = stream(stream_args(1000000, 20, 0, 1))
    assert len(next(call)) == 20
    call.cancel()
    fails_with(grpc.StatusCode.CANCELLED, lambda: list(call))
    hang = channel.unary_stream("/test.Echo/Hang", **RAW)
    start = time.monotonic()
    fails_with(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: list(hang(b"x", timeout=0.3)))
    assert 0.25 < time.monotonic() - start < 2
    wait = channel.unary_unary("/test.Echo/Wait", **RAW)
    assert wait(b"") == b"none"
    assert 9000 < int(wait(b"", timeout=10)) <= 12000  # grpcio rounds up, coarsely


def check_slow_reader(channel):
    stream = channel.unary_stream("/test.Echo/Stream", **RAW)
    call = stream(stream_args(100000, 10000, 1))
    fails_with(grpc.StatusCode.RESOURCE_EXHAUSTED, lambda: [time.sleep(0.001) for _ in call])
    assert channel.unary_unary("/test.Echo/Unary", **RAW)(b"x") == b"x"


def check_threads(port):
    def work(errors):
        try:
            with grpc.insecure_channel("127.0.0.1:%d" % port,
                                       options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
                unary = channel.unary_unary("/test.Echo/Unary", **RAW)
                stream = channel.unary_stream("/test.Echo/Stream", **RAW)
                for _ in range(50):
                    assert unary(b"t") == b"t"
                    assert len(list(stream(stream_args(20, 10)))) == 20
        except Exception as e:  # told to the main thread
            errors.append(e)

    errors = []
    threads = [threading.Thread(target=work, args=(errors,)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors


def main():
    server = subprocess.Popen([sys.argv[1]], stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
        with grpc.insecure_channel("127.0.0.1:%d" % port, options=options) as channel:
            for check in (check_unary, check_statuses, check_streams, check_cancel_and_deadline,
                          check_slow_reader):
                check(channel)
                print("ok", check.__name__)
        check_threads(port)
        print("ok check_threads")
        server.terminate()
        assert server.wait(10) == 0, "the server ends with %d" % server.returncode
    finally:
        server.kill()


main()
