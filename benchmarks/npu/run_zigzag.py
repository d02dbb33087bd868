"""Run ZigZag on a network: `PYTHON_OF_ZIGZAG run_zigzag.py NETWORK.json OUT.json`. Writes energy per layer.

`PYTHON_OF_ZIGZAG`: of an environment with `pip install zigzag-dse==3.9.1`. The hardware is its own `tpu_like` (32 x 32
weight-stationary, 2 MB), the mapping the one of least energy. Layers of one shape are run once.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml
import zigzag
from zigzag.api import get_hardware_performance_zigzag

HARDWARE = Path(zigzag.__file__).parent / "inputs" / "hardware" / "tpu_like.yaml"
LINKS = {"O": "O", "W": "I2", "I": "I1"}
LIMIT = 5


def workload(shape):
    """A layer as ZigZag's workload: (op, K, C, OY, OX, FY, FX, stride)."""
    op, k, c, oy, ox, fy, fx, stride = shape
    channels = {"conv": "[k]", "depthwise": "[g]"}[op]
    weights, inputs = ("[k][c]", "[c]") if op == "conv" else ("[g]", "[g]")
    dims = {"B": 1, "OY": oy, "OX": ox, "FY": fy, "FX": fx} | ({"K": k, "C": c} if op == "conv" else {"G": k})
    return [
        {
            "id": 0,
            "name": "layer",
            "operator_type": "Conv",
            "equation": f"O[b]{channels}[oy][ox]+=W{weights}[fy][fx]*I[b]{inputs}[iy][ix]",
            "dimension_relations": [f"ix={stride}*ox+1*fx", f"iy={stride}*oy+1*fy"],
            "loop_dims": list(dims),
            "loop_sizes": list(dims.values()),
            "operand_precision": {"O": 16, "O_final": 8, "W": 8, "I": 8},
            "operand_source": {"I": 0, "W": 0},
        }
    ]


def run(shape):
    """Picojoules of one layer."""
    spatial = {"D1": ["K, 32"], "D2": ["C, 32"]} if shape[0] == "conv" else {"D1": ["G, 32"], "D2": ["FX, 32"]}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        paths = [Path(folder, name) for name in ("workload.yaml", "mapping.yaml")]
        paths[0].write_text(yaml.safe_dump(workload(shape)))
        paths[1].write_text(
            yaml.safe_dump([{"name": "default", "spatial_mapping": spatial, "memory_operand_links": LINKS}])
        )
        energy, *_ = get_hardware_performance_zigzag(
            str(paths[0]), str(HARDWARE), str(paths[1]), opt="energy", lpf_limit=LIMIT, loma_show_progress_bar=False,
            dump_folder=folder, pickle_filename=str(Path(folder, "cmes.pickle")),
        )  # fmt: skip
    return float(energy)


def main(source, target):
    logging.disable(logging.CRITICAL)
    network = json.loads(Path(source).read_text())
    found = []
    for layer in network["layers"]:
        x, y = (network["tensors"][name] for name in (layer["inputs"][0], layer["output"]))
        if layer["op"] == "dense":
            found.append((layer["name"], ("conv", y[-1], x[-1], 1, 1, 1, 1, 1)))
        elif layer["op"] in ("conv", "depthwise"):
            found.append((layer["name"], (layer["op"], y[-1], x[-1], y[1], y[2], *layer["kernel"], layer["stride"][0])))
    energies = {shape: run(shape) for shape in sorted({shape for _, shape in found})}
    head = {"tool": "zigzag-dse", "version": version("zigzag-dse"), "hardware": "tpu_like", "lpf_limit": LIMIT}
    lines = ",\n  ".join(json.dumps({"name": name, "energy_pj": energies[shape]}) for name, shape in found)
    Path(target).write_text(f'{{"head": {json.dumps(head)},\n "layers": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
