"""Run SCALE-Sim on a network: `PYTHON_OF_SCALESIM run_scalesim.py NETWORK.json ROWS COLUMNS ws|os|is OUT.json`.

`PYTHON_OF_SCALESIM`: of an environment with `pip install scalesim==3.0.0 numpy==1.26.4`. A cycle is a row of the
array's demand matrices; "Total Cycles" of the report is the index of the last one, one less. Layers of one shape are
run once. A depthwise layer is a layer per channel there; one channel is run, and `groups` says how many there are.
Inputs get exactly the size their windows span, as SCALE-Sim rounds output sizes up.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from scalesim import single_layer_sim
from scalesim.memory.double_buffered_scratchpad_mem import double_buffered_scratchpad
from scalesim.scale_sim import scalesim

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {columns}
IfmapSramSzkB: 1024
FilterSramSzkB: 1024
OfmapSramSzkB: 1024
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: {dataflow}
Bandwidth: 32
MemoryBanks: 1
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: False
SparseRep: ellpack_block
OptimizedMapping: False
BlockSize: 8
RandomNumberGeneratorSeed: 40
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
"""


def shape(layer, tensors):
    """(ifmap height, width, filter height, width, channels, filters, strides) and how many such products there are."""
    x, y = tensors[layer["inputs"][0]], tensors[layer["output"]]
    if layer["op"] == "dense":
        return (1, 1, 1, 1, x[-1], y[-1], 1), 1
    (kh, kw), (sh, sw) = layer["kernel"], layer["stride"]
    assert sh == sw
    size = ((y[1] - 1) * sh + kh, (y[2] - 1) * sw + kw)
    depthwise = layer["op"] == "depthwise"
    return (*size, kh, kw, 1 if depthwise else x[-1], 1 if depthwise else y[-1], sh), y[-1] if depthwise else 1


class DemandedError(Exception):
    """The array's demands on its memories are known: how many cycles they take."""


def run(shape, rows, columns, dataflow):
    """Compute cycles: rows of the demand matrix. What comes after, the memories' side, takes minutes per layer."""

    def stop(self, ifmap, filters, ofmap):
        raise DemandedError(len(ofmap))

    double_buffered_scratchpad.service_memory_requests = stop
    single_layer_sim.systolic_compute_ws.get_prefetch_matrices = lambda self: (None, None)
    single_layer_sim.systolic_compute_os.get_prefetch_matrices = lambda self: (None, None)
    single_layer_sim.systolic_compute_is.get_prefetch_matrices = lambda self: (None, None)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config, topology, layout = (Path(folder, name) for name in ("scale.cfg", "net.csv", "layout.csv"))
        config.write_text(CONFIG.format(rows=rows, columns=columns, dataflow=dataflow))
        header = "Layer name,IFMAP Height,IFMAP Width,Filter Height,Filter Width,Channels,Num Filter,Strides,"
        topology.write_text(f"{header}\nlayer,{','.join(map(str, shape))},\n")
        layout.write_text("unused\nlayer," + "1," * 20 + "\n")
        simulator = scalesim(
            save_disk_space=True, verbose=False, config=str(config), topology=str(topology), layout=str(layout)
        )
        try:
            simulator.run_scale(top_path=folder)
        except DemandedError as cycles:
            return cycles.args[0]
    raise RuntimeError("SCALE-Sim never came to its memories")


def main(source, rows, columns, dataflow, target):
    network = json.loads(Path(source).read_text())
    products = [layer for layer in network["layers"] if layer["op"] in ("conv", "depthwise", "dense")]
    found = [(layer["name"], *shape(layer, network["tensors"])) for layer in products]
    unique = sorted({s for _, s, _ in found})
    cycles = {s: run(s, rows, columns, dataflow) for s in unique}
    layers = [{"name": name, "groups": groups, "cycles": cycles[s]} for name, s, groups in found]
    head = {
        "tool": "scalesim",
        "version": version("scalesim"),
        "rows": int(rows),
        "columns": int(columns),
        "dataflow": dataflow,
    }
    lines = ",\n  ".join(json.dumps(layer) for layer in layers)
    Path(target).write_text(f'{{"head": {json.dumps(head)},\n "layers": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main(*sys.argv[1:])
