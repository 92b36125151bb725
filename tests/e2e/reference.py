"""reference - what one process computes (tandem-logits): the judge of what the daemons stream."""
import json
import os
import struct
import subprocess
import tempfile

from harness import ROOT, find_program

TEXT = os.path.join(ROOT, "tests", "e2e", "text.txt")


def read_tensor(path, name):
    """(shape, values) of an I32 or F32 tensor of a safetensors file."""
    with open(path, "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        entry = json.loads(f.read(n))[name]
        begin, end = entry["data_offsets"]
        f.seek(8 + n + begin)
        data = f.read(end - begin)
    code = {"I32": "i", "F32": "f"}[entry["dtype"]]
    return entry["shape"], struct.unpack("<%d%s" % (len(data) // 4, code), data)


def continuation(args, ids, n, flags):
    """Greedy ids that tandem-logits makes for a prompt with these flags."""
    with tempfile.TemporaryDirectory(prefix="tandem-ref-") as folder:
        prompt, out = os.path.join(folder, "ids.json"), os.path.join(folder, "out.safetensors")
        with open(prompt, "w") as f:
            json.dump(ids, f)
        command = [find_program(args.bin, "tandem-logits"), "--model", args.model, "--ids", prompt, "--generate", str(n),
                   "--out", out] + list(flags)
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, "%s: %s" % (" ".join(command), done.stderr)
        return list(read_tensor(out, "generated_ids")[1])


def prompt_ids(cluster, n, start=0):
    """n token ids of the test text, from its start-th token on."""
    from harness import inference_pb2
    with open(TEXT) as f:
        text = f.read()
    ids = cluster.inference().Tokenize(inference_pb2.TokenizeRequest(text=text, no_special=True), timeout=30).token_ids
    assert len(ids) >= start + n, "the test text has %d tokens" % len(ids)
    return list(ids[start:start + n])
