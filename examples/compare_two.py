"""Interference of two adapters: cosines and shared directions, layer by layer.

python examples/compare_two.py content.safetensors style.safetensors
"""

import sys

import qrlora


def main() -> None:
    content, style = (qrlora.load(path) for path in sys.argv[1:3])
    rows = qrlora.similarity(content, style)
    for row in sorted(rows, key=lambda row: -abs(row.update))[:5]:
        print(f"{row.layer:72} cosine {row.update:+.3f}  input overlap {row.input_overlap:.3f}")
    print(f"{len(rows)} layers, largest cosine {max(abs(row.update) for row in rows):.3f}")


if __name__ == "__main__":
    main()
