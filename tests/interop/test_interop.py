"""Python's grpcio, as the distribution has it, against the real daemons: stubs made by protoc from our .proto files."""
import contextlib
import os
import subprocess
import threading
import time

from harness import Cluster, find_program, grpc, make_request, open_channel, run
from harness import health_pb2, health_pb2_grpc, inference_pb2, inference_pb2_grpc
from google.protobuf import descriptor_pb2
from grpc.reflection.v1 import reflection_pb2, reflection_pb2_grpc
from grpc.reflection.v1alpha import reflection_pb2 as alpha_pb2, reflection_pb2_grpc as alpha_grpc

Code = grpc.StatusCode
GREEDY = {"temperature": 0, "max_tokens": 12}
PROMPT = "In the beginning"
SERVICES = {"tandem.v1.Inference", "tandem.v1.Admin", "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}


@contextlib.contextmanager
def cluster(args, **how):
    """Daemons that, at the end, drain and end with 0: a sanitizer's last word would be another status."""
    with Cluster(args.bin, model=args.model, **how) as c:
        yield c
        c.check_exits()


def fails_with(code, says, call):
    try:
        call()
    except grpc.RpcError as e:
        assert e.code() == code and says in e.details(), (e.code(), e.details(), code, says)
        return e
    raise AssertionError("expected %s" % code)


def generate_takes_text_or_ids(args):
    with cluster(args) as c:
        stub = c.inference()
        a = c.generate(PROMPT, **GREEDY)
        assert a.ok and a.finish_reason == "length" and len(a.ids) == 12, a
        assert a.usage.prompt_tokens > 1 and a.usage.generated_tokens == 12, a.usage
        assert len(a.messages) > 1, "it streams"
        t = a.timing
        to_first = t.queue_s + t.prefill_s + t.transfer_s + t.first_token_s
        assert 0 < to_first <= t.total_s <= a.seconds + 0.01, t
        ids = stub.Tokenize(inference_pb2.TokenizeRequest(text=PROMPT)).token_ids
        assert len(ids) == a.usage.prompt_tokens
        b = c.generate(list(ids), **GREEDY)
        assert b.ok and b.ids == a.ids and b.text == a.text, b
        text = stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=a.ids)).text
        assert text == a.text, (text, a.text)
        model = stub.GetModel(inference_pb2.GetModelRequest())
        assert model.model == "tiny-v32" and model.context_length == 8192 and model.has_tokenizer, model
        c.wait_idle()


def sampling_fields_are_honoured(args):
    with cluster(args) as c:
        sampled = dict(temperature=0.9, top_p=0.95, top_k=50, max_tokens=16)
        a, b = (c.generate(PROMPT, seed=7, **sampled) for _ in range(2))
        assert a.ok and a.ids == b.ids, (a, b)
        others = [c.generate(PROMPT, **sampled) for _ in range(4)]
        assert len({tuple(o.ids) for o in others}) > 1, "without a seed each draws its own"
        greedy = c.generate(PROMPT, **GREEDY)
        stop = greedy.text.split()[2]
        cut = c.generate(PROMPT, stop=[stop], **GREEDY)
        assert cut.ok and cut.finish_reason == "stop", cut
        assert cut.text == greedy.text[:greedy.text.index(stop)], (cut.text, greedy.text)
        at = c.generate(PROMPT, stop_token_ids=[greedy.ids[3]], **GREEDY)
        assert at.finish_reason == "stop" and at.ids == greedy.ids[:greedy.ids.index(greedy.ids[3])], at
        long = c.generate(PROMPT, temperature=0, max_tokens=600, ignore_eos=True)
        assert long.finish_reason == "length" and len(long.ids) == 600, long
        c.wait_idle()


def text_may_hold_nul(args):
    with cluster(args) as c:
        stub = c.inference()
        ids = stub.Tokenize(inference_pb2.TokenizeRequest(text="a\0b\u00e9", no_special=True)).token_ids
        assert stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=ids)).text == "a\0b\u00e9"
        assert c.generate("a\0b", **GREEDY).ok


def a_cancelled_stream_frees_everything(args):
    with cluster(args) as c:
        requests = [c.submit(PROMPT, max_tokens=4000, ignore_eos=True) for _ in range(4)]
        for r in requests:
            r.wait_token().cancel()
        for r in requests:
            assert r.result().code == Code.CANCELLED, r.answer
        c.wait_idle()
        assert c.generate(PROMPT, **GREEDY).ok


def a_deadline_is_kept(args):
    with cluster(args) as c:
        a = c.generate(PROMPT, timeout=0.5, max_tokens=8000, ignore_eos=True)
        assert a.code == Code.DEADLINE_EXCEEDED and 0.4 < a.seconds < 3, a
        c.wait_idle()


def metadata_names_the_request(args):
    with cluster(args) as c:
        stub = c.inference()
        call = stub.Generate(make_request(PROMPT, **GREEDY), metadata=(("x-request-id", "interop-1"),))
        assert dict(call.initial_metadata())["x-request-id"] == "interop-1"
        list(call)
        call = stub.Generate(make_request(PROMPT, **GREEDY))
        made = dict(call.initial_metadata())["x-request-id"]
        assert len(made) == 32, made
        list(call)
        fails_with(Code.INVALID_ARGUMENT, "x-request-id", lambda: list(
            stub.Generate(make_request(PROMPT, **GREEDY), metadata=(("x-request-id", "two words"),))))
        for d in c.daemons:
            assert "req=interop-1" in d.log(), "%s does not log the id" % d.name
            assert PROMPT not in d.log(), "%s logs the prompt" % d.name


def invalid_arguments_are_refused_with_the_reason(args):
    with cluster(args) as c:
        cases = [
            (Code.INVALID_ARGUMENT, "temperature is nan", (PROMPT, dict(temperature=float("nan")))),
            (Code.INVALID_ARGUMENT, "temperature", (PROMPT, dict(temperature=-1))),
            (Code.INVALID_ARGUMENT, "top_p", (PROMPT, dict(top_p=0))),
            (Code.INVALID_ARGUMENT, "max_tokens is 0", (PROMPT, dict(max_tokens=0))),
            (Code.INVALID_ARGUMENT, "context of 8192", (PROMPT, dict(max_tokens=9000))),
            (Code.INVALID_ARGUMENT, "min_tokens", (PROMPT, dict(max_tokens=2, min_tokens=3))),
            (Code.INVALID_ARGUMENT, "empty", ("", {})),
            (Code.INVALID_ARGUMENT, "empty", ([], {})),
            (Code.INVALID_ARGUMENT, "token_ids[1]", ([1, 100000], {})),
            (Code.INVALID_ARGUMENT, "8192", ([5] * 8192, {})),
            (Code.INVALID_ARGUMENT, "stop[0]", (PROMPT, dict(stop=[""]))),
            (Code.INVALID_ARGUMENT, "stop: more than 16", (PROMPT, dict(stop=["x"] * 17))),
            (Code.INVALID_ARGUMENT, "stop_token_ids", (PROMPT, dict(stop_token_ids=[1 << 31]))),
            (Code.INVALID_ARGUMENT, "text and token_ids", (None, {})),
            (Code.NOT_FOUND, "other-model", (PROMPT, dict(model="other-model"))),
        ]
        running = c.submit(PROMPT, temperature=0, max_tokens=300, ignore_eos=True)
        for code, says, (prompt, fields) in cases:
            a = c.generate(prompt, **fields)
            assert a.code == code and says in a.details, (says, a)
        raw = c.router.rpc().unary_stream("/tandem.v1.Inference/Generate")
        fails_with(Code.INVALID_ARGUMENT, "not UTF-8 at byte 1", lambda: list(raw(b"\x12\x02a\xff")))
        fails_with(Code.INVALID_ARGUMENT, "malformed", lambda: list(raw(b"\x12\x7fa")))
        assert running.result().ok, "a good request suffered"
        c.wait_idle()


def what_can_never_fit_is_refused_with_the_numbers(args):
    flags = ["--kv-pages", "8"]
    with cluster(args, prefill_flags=flags, decode_flags=flags) as c:
        a = c.generate(PROMPT, max_tokens=1000)
        assert a.code == Code.OUT_OF_RANGE and "can never fit" in a.details and "has 8" in a.details, a
        assert a.seconds < 2, a
        assert c.generate(PROMPT, **GREEDY).ok


def the_protocol_s_own_refusals(args):
    with cluster(args) as c:
        channel = c.router.rpc()
        for path in ("/tandem.v1.Inference/NoSuch", "/no.such.Service/Method"):
            fails_with(Code.UNIMPLEMENTED, "unknown method", lambda p=path: channel.unary_unary(p)(b""))
        big = inference_pb2.TokenizeRequest(text="x" * (5 << 20))
        fails_with(Code.RESOURCE_EXHAUSTED, "", lambda: c.inference().Tokenize(big))
        fails_with(Code.UNIMPLEMENTED, "", lambda: c.inference().Tokenize(
            inference_pb2.TokenizeRequest(text="x" * 5000), compression=grpc.Compression.Gzip))
        assert c.generate(PROMPT, **GREEDY).ok


def health_is_checked_and_watched(args):
    with cluster(args) as c:
        stub = health_pb2_grpc.HealthStub(c.router.rpc())
        for service in ("", "tandem.v1.Inference"):
            got = stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert got.status == health_pb2.HealthCheckResponse.SERVING
        fails_with(Code.NOT_FOUND, "", lambda: stub.Check(health_pb2.HealthCheckRequest(service="x")))
        seen, changed = [], threading.Condition()

        def watch():
            try:
                for message in call:
                    with changed:
                        seen.append(message.status)
                        changed.notify()
            except grpc.RpcError:
                pass

        def wait_for(states):
            with changed:
                assert changed.wait_for(lambda: seen == states, 10), (seen, states)

        call = stub.Watch(health_pb2.HealthCheckRequest())
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        wait_for([1])
        c.decode[0].kill()
        wait_for([1, 2])
        c.decode[0].start()
        wait_for([1, 2, 1])
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="x"))
        assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        unknown.cancel()
        call.cancel()
        thread.join(10)
        assert c.generate(PROMPT, **GREEDY).ok


def check_reflection(c, pb2, grpc_stub):
    stub = grpc_stub(c.router.rpc())
    ask = pb2.ServerReflectionRequest

    def answers(*requests):
        return list(stub.ServerReflectionInfo(iter(requests)))

    listed = answers(ask(list_services=""))[0].list_services_response.service
    assert {s.name for s in listed} == SERVICES, listed
    wanted = [ask(file_by_filename="tandem/v1/inference.proto"),
              ask(file_containing_symbol="tandem.v1.Inference"),
              ask(file_containing_symbol="tandem.v1.Inference.Generate"),
              ask(file_containing_symbol="tandem.v1.GenerateRequest")]
    for answer in answers(*wanted):
        files = [descriptor_pb2.FileDescriptorProto.FromString(f)
                 for f in answer.file_descriptor_response.file_descriptor_proto]
        assert "tandem/v1/inference.proto" in [f.name for f in files], files
        ours = [f for f in files if f.name == "tandem/v1/inference.proto"][0]
        real = descriptor_pb2.FileDescriptorProto()
        inference_pb2.DESCRIPTOR.CopyToProto(real)
        assert [m.name for m in ours.message_type] == [m.name for m in real.message_type]
        assert [m.name for m in ours.service[0].method] == [m.name for m in real.service[0].method]
    missing = answers(ask(file_by_filename="no/such.proto"), ask(file_containing_symbol="no.such.Symbol"))
    assert [m.error_response.error_code for m in missing] == [Code.NOT_FOUND.value[0]] * 2, missing


def reflection_v1alpha_lists_and_finds(args):
    with cluster(args) as c:
        check_reflection(c, alpha_pb2, alpha_grpc.ServerReflectionStub)


def reflection_v1_lists_and_finds(args):
    with cluster(args) as c:
        check_reflection(c, reflection_pb2, reflection_pb2_grpc.ServerReflectionStub)


def many_requests_on_many_channels(args):
    with cluster(args) as c:
        want = c.generate(PROMPT, **GREEDY)
        channels = [open_channel(c.router.listen) for _ in range(4)]
        stubs = [inference_pb2_grpc.InferenceStub(ch) for ch in channels]
        calls = [stubs[i % 4].Generate(make_request(PROMPT, **GREEDY), timeout=60) for i in range(24)]
        for call in calls:
            text = "".join(m.text for m in call)
            assert text == want.text, (text, want.text)
        for ch in channels:
            ch.close()
        c.wait_idle()


def a_draining_router_finishes_and_refuses(args):
    with cluster(args) as c:
        running = c.submit(PROMPT, temperature=0, max_tokens=500, ignore_eos=True).wait_token()
        c.router.signal(15)
        deadline = time.monotonic() + 5
        while c.router.serving() and time.monotonic() < deadline:
            time.sleep(0.01)
        late = c.generate(PROMPT, timeout=5, **GREEDY)
        assert running.result().ok and len(running.answer.ids) == 500, running.answer
        assert late.code == Code.UNAVAILABLE, late
        assert c.router.process.wait(30) == 0


def tandemctl_speaks_to_the_real_daemons(args):
    with cluster(args) as c:
        want = c.generate(PROMPT, **GREEDY)
        ctl = find_program(args.bin, "tandemctl")
        env = dict(os.environ, TANDEM_ROUTER=c.router.listen)

        def call(*words, stdin=b""):
            p = subprocess.run([ctl, *words], env=env, input=stdin, capture_output=True, timeout=60)
            return p.returncode, p.stdout, p.stderr.decode()

        code, out, err = call("generate", "--temperature", "0", "--max-tokens", "12", PROMPT)
        assert code == 0 and out.decode() == want.text and "tokens/s" in err, (code, out, err)
        code, out, err = call("generate", "--temperature", "0", "--max-tokens", "12", "--print-ids", "-",
                              stdin=PROMPT.encode())
        assert [int(x) for x in out.split()] == want.ids, (out, want.ids)
        code, ids, _ = call("tokenize", PROMPT)
        code, out, _ = call("generate", "--temperature", "0", "--max-tokens", "12", "--no-stats", "--ids", ids.decode())
        assert code == 0 and out.decode() == want.text
        code, out, _ = call("status")
        assert code == 0 and c.decode[0].listen in out.decode() and "ready" in out.decode(), out
        code, out, _ = call("kv", "links")
        assert code == 0 and b"reader" in out, out
        assert call("kv", "transfers")[0] == 0 and call("model")[0] == 0 and call("health")[0] == 0
        c.decode[0].kill()
        deadline = time.monotonic() + 5
        while call("health")[0] != 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert call("status")[0] == 8 and call("generate", PROMPT)[0] == 8
        c.router.kill()
        assert call("status")[0] == 3


run()
