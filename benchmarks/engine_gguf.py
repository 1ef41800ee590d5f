"""Write a GGUF file anew with the matrices in another type, for llama.cpp in the engine's benchmark.

    python benchmarks/engine_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct.Q8_0.gguf [--type Q8_0]

llama.cpp has no fast matrix product on a CPU for every type (for Q4_1, say). 8 bits hold what 4 did almost exactly, so
that it computes with the weights that the other engines were given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType, quants

OWN = ("general.architecture", "general.file_type", "general.quantization_version")
TYPES = {
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}


def rewrite(source: Path, target: Path, name: str) -> None:
    """Write `source` as `target`: vectors in float32, the rest in the type called `name`."""
    kind, file_type = TYPES[name]
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key in OWN or key.startswith("GGUF."):
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if values.ndim > 1:
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    options = parser.parse_args()
    rewrite(options.source, options.target, options.type)


if __name__ == "__main__":
    main()
