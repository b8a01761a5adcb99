"""Speed, bytes and memory, measured: ``python -m benchmarks NAME --out DIR``.

Every benchmark runs all sides of a comparison in one run, interleaved where it can, and writes ``summary.json`` with figures and ratios
beside the machine they were measured on. Absolute times of a shared machine mean little; ratios within one run mean something.
"""
