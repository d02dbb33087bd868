"""Run Vela on a network: `PYTHON_OF_VELA run_vela.py NETWORK.json OUT.json`. Writes what Vela estimates per layer.

`PYTHON_OF_VELA`: of an environment with `pip install ethos-u-vela==5.2.0`.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import ethosu
from tflite import Writer

OPTIONS = [
    "--accelerator-config", "ethos-u55-256", "--system-config", "Ethos_U55_High_End_Embedded",
    "--memory-mode", "Shared_Sram", "--verbose-performance",
]  # fmt: skip
FIELDS = ("NNG Operator", "Op Cycles", "NPU", "SRAM AC", "OffFlash AC", "MAC Count", "Name")


def main(source: Path, target: Path) -> None:
    network = json.loads(source.read_text())
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "network.tflite")
        Writer(network).write(model)
        ini = Path(next(iter(ethosu.__path__)), "config_files", "Arm", "vela.ini")
        command = [str(Path(sys.executable).with_name("vela")), str(model), "--config", str(ini), *OPTIONS]
        subprocess.run([*command, "--output-dir", folder], check=True, stdout=subprocess.DEVNULL)
        with Path(folder, "network_per-layer.csv").open() as file:
            rows = [{key: row[key] for key in FIELDS} for row in csv.DictReader(file) if float(row["Op Cycles"])]
        with next(iter(Path(folder).glob("network_summary_*.csv"))).open() as file:
            summary = next(iter(csv.DictReader(file)))
    layers = [
        {key: value if key in ("NNG Operator", "Name") else float(value) for key, value in row.items()} for row in rows
    ]
    totals = {key: float(value) for key, value in summary.items() if key.startswith("cycles_")}
    head = {"tool": "ethos-u-vela", "version": version("ethos-u-vela"), "options": " ".join(OPTIONS)}
    lines = ",\n  ".join(json.dumps(layer) for layer in layers)
    target.write_text(
        f'{{"head": {json.dumps(head)},\n "totals": {json.dumps(totals)},\n "layers": [\n  {lines}\n]}}\n'
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
