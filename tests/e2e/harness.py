"""harness - the three daemons as a test needs them: started on free loopback ports, watched, damaged, cleaned up.

    from harness import Cluster, run

    def a_request_streams_text(args):
        with Cluster(args.bin, model=args.model, n_prefill=1, n_decode=2, decode_flags=["--drafts", "3"]) as c:
            answer = c.generate("In the beginning", max_tokens=16, temperature=0)
            assert answer.ok and answer.usage.generated_tokens == 16, answer
            c.decode[0].kill()
            c.decode[0].start().wait_ready()

    run()        # argv: [--bin DIR] [--model DIR] [claim...]; every ctest names one claim

A block that ends well ends at rest: every gauge of every daemon that runs and is not paused goes back to zero.
Whatever happens, the daemons end: with the block, with the interpreter, and when it is killed (a shell holds a pipe).
Needs the standard library and grpcio (python3-grpcio, stubs by grpc_python_plugin); exit 77 where they are missing.
"""
import argparse
import atexit
import contextlib
import fcntl
import inspect
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request

sys.dont_write_bytecode = True
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # daemons are started while channels are open

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SKIP = 77
PROTOS = ["tandem/v1/inference", "tandem/v1/admin", "tandem/v1/worker", "tandem/v1/decode", "tandem/v1/prefill",
          "grpc/health/v1/health", "grpc/reflection/v1/reflection", "grpc/reflection/v1alpha/reflection"]


def skip(why):
    print("skipped:", why)
    sys.stdout.flush()
    os._exit(SKIP)


try:
    import grpc
except ImportError:
    skip("no grpcio")


def make_stubs():
    """Python code of our .proto files, in a folder that goes with the interpreter."""
    plugin = shutil.which("grpc_python_plugin")
    if plugin is None or shutil.which("protoc") is None:
        skip("no protoc or no grpc_python_plugin")
    out = tempfile.mkdtemp(prefix="tandem-stubs-")
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    subprocess.run(["protoc", "-I", os.path.join(ROOT, "proto"), "--python_out=" + out, "--grpc_python_out=" + out,
                    "--plugin=protoc-gen-grpc_python=" + plugin] + [p + ".proto" for p in PROTOS], check=True)
    sys.path.insert(0, out)
    grpc.__path__.append(os.path.join(out, "grpc"))  # our grpc/health stands beside grpcio's own package


make_stubs()
from grpc.health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tandem.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc  # noqa: E402


# ---- processes ----

class Reaper:
    """A shell that kills what we started when our end of its pipe closes without a word."""

    SCRIPT = 'pids=; while read -r word; do [ "$word" = done ] && exit 0; pids="$pids $word"; done; kill -9 $pids'

    def __init__(self):
        self.shell = subprocess.Popen(["/bin/sh", "-c", self.SCRIPT], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                      start_new_session=True)
        atexit.register(self.finish)

    def watch(self, pid):
        self.shell.stdin.write(b"%d\n" % pid)
        self.shell.stdin.flush()

    def finish(self):
        for daemon in list(Daemon.alive):
            daemon.destroy()
        with contextlib.suppress(BrokenPipeError):
            self.shell.stdin.write(b"done\n")
            self.shell.stdin.close()
        self.shell.wait()


reaper = Reaper()
port_locks = []


def free_port():
    """A port below the ephemeral range (no outgoing connection takes it), ours alone until the interpreter ends."""
    folder = os.path.join(tempfile.gettempdir(), "tandem-ports-%d" % os.getuid())
    os.makedirs(folder, exist_ok=True)
    for _ in range(1000):
        port = random.randrange(20000, 30000)
        lock = open(os.path.join(folder, str(port)), "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        port_locks.append(lock)
        return port
    raise RuntimeError("no free port")


def is_sanitized(folder):
    """A build with sanitizers: everything is several times slower."""
    with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "CMakeCache.txt")) as f:
        return any(line.startswith("TANDEM_SANITIZE:") and line.strip()[-1] != "=" for line in f)
    return False


def find_program(folder, name):
    sub = name[len("tandem-"):] if name.startswith("tandem-") else os.path.join("tools", name)
    for path in (os.path.join(folder, sub, name), os.path.join(folder, name), os.path.join(folder, "tools", name, name)):
        if os.path.isfile(path):
            return os.path.abspath(path)
    raise FileNotFoundError("%s is not built in %s" % (name, folder))


class Daemon:
    """One daemon process. It keeps its addresses over restarts; its logs go on in one file."""

    alive = set()

    def __init__(self, program, flags, name, folder, env=None):
        self.program, self.name = program, name
        self.listen = "127.0.0.1:%d" % free_port()
        self.admin = "127.0.0.1:%d" % free_port()
        self.flags = list(flags)
        self.env = dict(os.environ, **(env or {}))
        self.log_path = os.path.join(folder, name + ".log")
        self.process = None
        self.stopped = False
        self.channel = None

    @property
    def pid(self):
        return self.process.pid

    def command(self):
        return [self.program, "--listen", self.listen, "--admin", self.admin] + self.flags

    def start(self, flags=None):
        assert not self.running(), self.name + " runs already"
        if flags is not None:
            self.flags = list(flags)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=self.env, cwd=ROOT)
        reaper.watch(self.process.pid)
        Daemon.alive.add(self)
        return self

    def running(self):
        return self.process is not None and self.process.poll() is None

    def rpc(self):
        """A channel of its own, made anew after a restart is none of our business: gRPC reconnects."""
        if self.channel is None:
            self.channel = open_channel(self.listen)
        return self.channel

    def serving(self, timeout=0.5, service=""):
        """What grpc.health.v1 says; False also when nobody answers."""
        try:
            answer = health_pb2_grpc.HealthStub(self.rpc()).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def wait_ready(self, timeout=60):
        until = time.monotonic() + timeout
        while not self.serving():
            if not self.running():
                raise AssertionError("%s ended with %s:\n%s" % (self.name, self.process.returncode, self.tail()))
            if time.monotonic() > until:
                raise AssertionError("%s is not ready after %g s:\n%s" % (self.name, timeout, self.tail()))
            time.sleep(0.02)
        return self

    def signal(self, number):
        os.kill(self.process.pid, number)

    def pause(self):
        """SIGSTOP: the process is there and does nothing."""
        self.signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self):
        self.signal(signal.SIGCONT)
        self.stopped = False

    def kill(self):
        """kill -9, and gone when it returns."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.stopped = False
        Daemon.alive.discard(self)

    def terminate(self, timeout=45):
        """SIGTERM: drains; returns the exit status."""
        self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("%s did not drain in %g s:\n%s" % (self.name, timeout, self.tail())) from None
        Daemon.alive.discard(self)
        return code

    def restart(self):
        if self.running():
            self.kill()
        return self.start()

    def destroy(self):
        if self.running():
            self.kill()
        Daemon.alive.discard(self)
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def log(self):
        with contextlib.suppress(FileNotFoundError), open(self.log_path, errors="replace") as f:
            return f.read()
        return ""

    def tail(self, n=25):
        return "\n".join("  %s| %s" % (self.name, line) for line in self.log().splitlines()[-n:])

    def http(self, path, timeout=5):
        """(status, body) of the admin address."""
        try:
            with urllib.request.urlopen("http://%s%s" % (self.admin, path), timeout=timeout) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metrics(self):
        """{'name{label="x"}': value} of /metrics."""
        status, text = self.http("/metrics")
        assert status == 200, (status, text)
        values = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                key, value = line.rsplit(" ", 1)
                values[key] = float(value)
        return values

    def metric(self, name, **labels):
        """The sum over all label sets that have these labels; 0 when there is none."""
        total = 0.0
        for key, value in self.metrics().items():
            head, _, rest = key.partition("{")
            if head == name and all('%s="%s"' % pair in rest for pair in labels.items()):
                total += value
        return total

    def cpu_seconds(self):
        with open("/proc/%d/stat" % self.process.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- requests ----

def open_channel(address, **options):
    settings = {"grpc.use_local_subchannel_pool": 1, "grpc.initial_reconnect_backoff_ms": 50,
                "grpc.min_reconnect_backoff_ms": 50, "grpc.max_reconnect_backoff_ms": 200,
                "grpc.enable_http_proxy": 0, "grpc.max_receive_message_length": -1,
                "grpc.max_send_message_length": -1}
    settings.update(options)
    return grpc.insecure_channel(address, options=list(settings.items()))


def make_request(prompt, **fields):
    """prompt: text, or a list of token ids. fields: those of GenerateRequest."""
    request = inference_pb2.GenerateRequest(**fields)
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt is not None:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    return request


class Answer:
    """How one Generate ended. text and ids are what came until then."""

    def __init__(self):
        self.text, self.ids, self.finish_reason, self.usage, self.timing = "", [], "", None, None
        self.code, self.details = None, ""
        self.messages = []  # (seconds since the start, text, ids)
        self.started = time.monotonic()
        self.seconds = 0.0

    @property
    def ok(self):
        return self.code == grpc.StatusCode.OK

    def __repr__(self):
        return "<%s %r finish=%r ids=%d text=%r %.2f s>" % (self.code and self.code.name, self.details,
                                                           self.finish_reason, len(self.ids), self.text[:60], self.seconds)


class Request:
    """One Generate under way, on a thread of its own."""

    def __init__(self, stub, request, timeout, request_id):
        self.answer = Answer()
        self.streaming = threading.Event()  # a token came, or the end
        self.metadata = (("x-request-id", request_id),) if request_id else None
        self.call = stub.Generate(request, timeout=timeout, metadata=self.metadata)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        a = self.answer
        try:
            for message in self.call:
                a.text += message.text
                a.ids.extend(message.token_ids)
                a.messages.append((time.monotonic() - a.started, message.text, list(message.token_ids)))
                if message.finish_reason:
                    a.finish_reason, a.usage, a.timing = message.finish_reason, message.usage, message.timing
                if message.token_ids or message.text:
                    self.streaming.set()
            a.code = self.call.code()
        except grpc.RpcError as e:
            a.code, a.details = e.code(), e.details()
        a.seconds = time.monotonic() - a.started
        self.streaming.set()

    def wait_token(self, timeout=60):
        assert self.streaming.wait(timeout), "no token after %g s" % timeout
        return self

    def cancel(self):
        self.call.cancel()
        return self

    def result(self, timeout=120):
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the request has not ended after %g s: %r" % (timeout, self.answer)
        return self.answer


# ---- the whole ----

IDLE_GAUGES = ("tandem_requests_active", "tandem_requests_queued", "tandem_calls_active", "tandem_streams_open",
               "tandem_transfers_active")


AT_REST_S = 20  # at the end of every test; pages of a reader that died are held until its lease ends, 10 s
FATAL = 1  # a daemon's exit status when its engine failed
CRASHES = [FATAL] + [-n for n in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)]
SANITIZERS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer", "runtime error: ")


class Cluster:
    """A router, prefill daemons and decode daemons. Flags are lists as on the command line, for all of a kind; a list
    of lists gives each its own. start=False: nothing is started (c.start() or the daemons' own start() do it)."""

    def __init__(self, bin_dir, model=None, n_prefill=1, n_decode=1, router_flags=(), prefill_flags=(),
                 decode_flags=(), env=None, start=True, timeout=60):
        model = os.path.abspath(model or os.path.join(ROOT, "models", "tiny-v32"))
        self.folder = tempfile.mkdtemp(prefix="tandem-e2e-")
        self.prefill = [self.make(bin_dir, "prefill", i, model, prefill_flags, env) for i in range(n_prefill)]
        self.decode = [self.make(bin_dir, "decode", i, model, decode_flags, env) for i in range(n_decode)]
        workers = ["--prefill-workers", ",".join(d.listen for d in self.prefill),
                   "--decode-workers", ",".join(d.listen for d in self.decode)]
        self.router = Daemon(find_program(bin_dir, "tandem-router"),
                             ["--model", model] + workers + list(router_flags), "router", self.folder, env)
        self.daemons = self.prefill + self.decode + [self.router]
        self.patient = is_sanitized(bin_dir)
        if start:
            try:
                self.start(timeout)
            except BaseException:
                self.close()
                raise

    def make(self, bin_dir, kind, i, model, flags, env):
        own = flags[i] if flags and isinstance(flags[0], (list, tuple)) else flags
        pages = [] if "--kv-pages" in own else ["--kv-pages", "256"]  # all of a pool is touched at start
        return Daemon(find_program(bin_dir, "tandem-" + kind), ["--model", model] + pages + list(own),
                      "%s%d" % (kind, i), self.folder, env)

    def be_patient(self):
        """A sanitizer's daemon may say nothing for a second and be well: tests of these times name them."""
        for d in self.daemons:
            flag = {"r": "--heartbeat-timeout", "d": "--peer-timeout"}.get(d.name[0])
            if flag is not None and flag not in d.flags:
                d.flags += [flag, "5s"]
            d.env.setdefault("UCX_MEM_MMAP_HOOK_MODE", "none")  # its hooks crash in TSan's dying threads

    def start(self, timeout=60):
        if self.patient:
            self.be_patient()
        for d in self.daemons:
            if not d.running():
                d.start()
        self.wait_ready(timeout)
        return self

    def wait_ready(self, timeout=60):
        """Every daemon says SERVING, and the router hears every worker as ready."""
        until = time.monotonic() + timeout
        for d in self.daemons:
            d.wait_ready(max(0.1, until - time.monotonic()))
        while not all(w.reachable and w.status.state == "ready" for w in self.status().workers):
            if time.monotonic() > until:
                raise AssertionError("the router does not hear every worker: %s\n%s" % (self.status(), self.logs()))
            time.sleep(0.02)
        return self

    def inference(self):
        return inference_pb2_grpc.InferenceStub(self.router.rpc())

    def admin(self):
        return admin_pb2_grpc.AdminStub(self.router.rpc())

    def status(self):
        return self.admin().GetStatus(admin_pb2.GetStatusRequest(), timeout=5)

    def submit(self, prompt, timeout=120, request_id=None, **fields):
        """Starts one Generate; see Request."""
        return Request(self.inference(), make_request(prompt, **fields), timeout, request_id)

    def generate(self, prompt, timeout=120, request_id=None, **fields):
        """One Generate to its end; see Answer. Never raises for a status."""
        return self.submit(prompt, timeout, request_id, **fields).result(timeout + 10)

    def busy(self):
        """What is not zero on an idle cluster: [(daemon, gauge, value)]."""
        found = []
        for d in self.daemons:
            if not d.running() or d.stopped:
                continue
            try:
                gauges = d.metrics().items()
            except OSError:  # it ends just now, or does not answer
                if d.running():
                    found.append((d.name, "/metrics", None))
                continue
            for key, value in gauges:
                name = key.partition("{")[0]
                held = name == "tandem_kv_pages" and 'state="free"' not in key
                if value != 0 and (name in IDLE_GAUGES or held):
                    found.append((d.name, key, value))
        return found

    def wait_idle(self, timeout=5):
        """Every gauge of every running daemon is back to zero."""
        until = time.monotonic() + timeout
        while True:
            left = self.busy()
            if not left:
                return
            if time.monotonic() > until:
                raise AssertionError("not idle after %g s: %s\n%s" % (timeout, left, self.logs()))
            time.sleep(0.05)

    def logs(self, n=25):
        return "\n".join(d.tail(n) for d in self.daemons)

    def terminate(self):
        """SIGTERM to all, the router first; {name: exit status}. Sanitizers report at exit: see check_exits()."""
        return {d.name: d.terminate() for d in reversed(self.daemons) if d.running() and not d.stopped}

    def check_exits(self):
        """All come to rest, drain and end with 0 (a sanitizer's finding would be another status)."""
        self.wait_idle(AT_REST_S)
        codes = self.terminate()
        assert all(code == 0 for code in codes.values()), "%s\n%s" % (codes, self.logs(60))

    def check_sane(self):
        """No daemon crashed, and no sanitizer complained, ended ones included."""
        for d in self.daemons:
            code = d.process.poll() if d.process is not None else None
            assert code not in CRASHES, "%s ended with status %d\n%s" % (d.name, code, d.tail(60))
            log = d.log()
            found = [mark for mark in SANITIZERS if mark in log]
            assert not found, "%s: %s\n%s" % (d.name, found, log[log.index(found[0]):][:6000])

    def close(self):
        for d in self.daemons:
            d.destroy()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            if kind is None:
                self.check_sane()
                self.wait_idle(AT_REST_S)
            else:
                print(self.logs(60))
        finally:
            self.close()


# ---- claims ----

def arguments():
    parser = argparse.ArgumentParser(description="one claim after the other; all when none is named")
    parser.add_argument("--bin", default=os.environ.get("TANDEM_BIN", os.path.join(ROOT, "build", "release")),
                        help="build folder with the daemons")
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "tiny-v32"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("claims", nargs="*")
    return parser


def run():
    """Calls each claim of the script that runs (or those that argv names), `def claim(args)` without a leading underscore
    as in CMakeLists.txt, with the parsed arguments; exits 1 if one failed."""
    args = arguments().parse_args()
    main = sys.modules["__main__"]
    by_name = {name: f for name, f in vars(main).items()
               if inspect.isfunction(f) and f.__module__ == "__main__" and not name.startswith("_") and
               list(inspect.signature(f).parameters) == ["args"]}
    unknown = [name for name in args.claims if name not in by_name]
    if unknown:
        sys.exit("no such claim: %s; there are: %s" % (", ".join(unknown), ", ".join(by_name)))
    failed = []
    for name in args.claims or by_name:
        begun = time.monotonic()
        try:
            by_name[name](args)
            print("ok %s (%.1f s)" % (name, time.monotonic() - begun))
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("FAILED %s (%.1f s)" % (name, time.monotonic() - begun))
            failed.append(name)
        sys.stdout.flush()
    sys.exit(1 if failed else 0)
