"""The NPU's cycles and energy against SCALE-Sim, Vela and ZigZag: `python benchmarks/npu_validation.py [--json FILE]`.

The references are files in benchmarks/references: per layer what each tool said when it was run by `npu/run_*.py`.
`--rerun scalesim=PYTHON` (vela=..., zigzag=...) runs one anew, in the environment that Python belongs to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "npu"))
REFERENCES = HERE / "references"
SYSTOLIC = ("32-ws", "32-os", "128-ws", "256-ws")
RANKED = ("resnet18", "mobilenet-v2", "resnet50", "efficientnet-lite0", "squeezenet")
PRODUCTS = ("Conv2D", "DepthwiseConv2D", "FullyConnected")


@lru_cache
def prepared(name: str) -> Any:
    """The network of that name."""
    from networks import network

    return network(name)


def costed(name: str, machine: str) -> dict[str, dict[str, Any]]:
    """What we say of each node on `machine`, every node by itself."""
    from graphopt import npu

    return {node["name"]: node for node in npu.estimate(prepared(name), machine)["nodes"] if "reason" not in node}


def reference(tool: str, which: str) -> dict[str, Any]:
    """What a tool said."""
    return json.loads((REFERENCES / f"{tool}-{which}.json").read_text())


def systolic(names: Iterable[str]) -> list[dict[str, Any]]:
    """Layers whose compute cycles equal SCALE-Sim's, per array and network."""
    rows: list[dict[str, Any]] = []
    for array in SYSTOLIC:
        for name in names:
            ours = costed(name, f"systolic-{array}")
            theirs = reference("scalesim", f"{array}-{name}")["layers"]
            equal = sum(ours[layer["name"]]["cycles"] == layer["groups"] * layer["cycles"] for layer in theirs)
            total = sum(layer["groups"] * layer["cycles"] for layer in theirs)
            rows.append({"array": array, "network": name, "layers": len(theirs), "equal": equal, "cycles": total})
    return rows


def kind_of(layer: Mapping[str, Any], weights: int) -> str:
    """`dense`; `dma` where memory outlasts Vela's NPU cycles, or 1 byte of weights per cycle takes 0.9 of them."""
    if layer["NNG Operator"] == "FullyConnected":
        return "dense"
    bound = layer["Op Cycles"] > layer["NPU"] or weights >= 0.9 * layer["NPU"]
    return "dma" if bound else "compute"


def edge(names: Iterable[str]) -> list[dict[str, Any]]:
    """Our cycles of every product layer of each network beside Vela's."""
    rows: list[dict[str, Any]] = []
    for name in names:
        ours, shapes = costed(name, "edge"), weight_bytes(name)
        layers = [layer for layer in reference("vela", name)["layers"] if layer["NNG Operator"] in PRODUCTS]
        known = {layer["Name"] for layer in layers}
        unnamed = [product for product in shapes if product not in known]
        for layer in layers:
            product = layer["Name"]
            if product not in shapes:  # what writes into a Concat has the Concat's name there: the same MACs tell it
                product = next(other for other in unnamed if ours[other]["macs"] == layer["MAC Count"])
                unnamed.remove(product)
            mine, theirs = ours[product]["cycles"], layer["Op Cycles"]
            row = {"network": name, "name": product, "kind": kind_of(layer, shapes[product])}
            rows.append({**row, "ours": mine, "vela": theirs, "error": mine / theirs - 1})
    return rows


def weight_bytes(name: str) -> dict[str, int]:
    """Elements of the weights of each product."""
    from graphopt.graph import constant_array

    found: dict[str, int] = {}
    for node in prepared(name).graph:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            array = constant_array(node.inputs[1])
            found[str(node.name)] = 0 if array is None else int(array.size)
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per network and kind: median and 90th percentile of the layers' errors, and the error of their sum."""
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(row["network"] for row in rows):
        for kind in ("compute", "dma", "dense", "all"):
            some = [row for row in rows if row["network"] == name and kind in (row["kind"], "all")]
            if not some:
                continue
            errors = sorted(abs(row["error"]) for row in some)
            sums = sum(row["ours"] for row in some) / sum(row["vela"] for row in some) - 1
            p90 = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
            median = statistics.median(errors)
            found.append(
                {"network": name, "kind": kind, "layers": len(some), "median": median, "p90": p90, "total": sums}
            )
    return found


def energy(names: Iterable[str]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the layers' energy with ZigZag's on the same hardware."""
    rows: list[dict[str, Any]] = []
    for name in names:
        ours = costed(name, str(HERE / "npu" / "zigzag-tpu-like.toml"))
        theirs = reference("zigzag", name)["layers"]
        mine = [ours[layer["name"]]["energy_uj"] for layer in theirs]
        given = [layer["energy_pj"] / 1e6 for layer in theirs]
        row = {"network": name, "layers": len(theirs), "spearman": spearman(mine, given)}
        rows.append({**row, "ours_uj": sum(mine), "zigzag_uj": sum(given)})
    return rows


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks; equal values share their mean rank."""
    return statistics.correlation(_ranks(a), _ranks(b))


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def rerun(tool: str, python: str, names: Iterable[str]) -> None:
    """Make a tool's files anew."""
    from networks import layers

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "network.json")
            source.write_text(json.dumps(layers(prepared(name))))
            script = str(HERE / "npu" / f"run_{tool}.py")
            for middle, which in (
                [((a.split("-")[0], *a.split("-")), f"{a}-{name}") for a in SYSTOLIC]
                if tool == "scalesim"
                else [((), name)]
            ):
                target = str(REFERENCES / f"{tool}-{which}.json")
                subprocess.run([python, script, str(source), *middle, target], check=True)


def main() -> None:
    """Print the tables."""
    from networks import HELD_OUT, TUNED

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rerun", action="append", default=[], metavar="TOOL=PYTHON")
    parser.add_argument("--networks", nargs="*", default=[*TUNED, *HELD_OUT])
    parser.add_argument("--layers", action="store_true", help="print every layer beside Vela")
    parser.add_argument("--json", type=Path, help="also write all rows here")
    options = parser.parse_args()
    for text in options.rerun:
        tool, python = text.split("=", 1)
        rerun(tool, python, {"scalesim": TUNED, "zigzag": RANKED}.get(tool, (*TUNED, *HELD_OUT)))
    names = options.networks
    found = {"systolic": systolic([name for name in names if name in TUNED])}
    for row in found["systolic"]:
        print(f"{row['array']:7} {row['network']:20} {row['equal']:3} of {row['layers']:3} equal, {row['cycles']:,}")
    rows = edge(names)
    if options.layers:
        for row in rows:
            print(row["network"], row["name"], row["kind"], row["ours"], f"{row['vela']:.0f} {row['error']:+.3f}")
    found["vela"] = summary(rows)
    for row in found["vela"]:
        held = "held out" if row["network"] in HELD_OUT else ""
        print(
            f"{row['network']:20} {row['kind']:8} {row['layers']:3} layers: median {100 * row['median']:5.1f} %, "
            f"p90 {100 * row['p90']:5.1f} %, total {100 * row['total']:+6.1f} %  {held}"
        )
    found["zigzag"] = energy([name for name in names if name in RANKED])
    for row in found["zigzag"]:
        print(
            f"{row['network']:20} Spearman {row['spearman']:.3f} over {row['layers']} layers, "
            f"{row['ours_uj']:.0f} uJ beside {row['zigzag_uj']:.0f}"
        )
    if options.json:
        options.json.write_text(json.dumps({**found, "layers": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
