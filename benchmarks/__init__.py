"""One script a question: this project and its peers side by side in the same run, as ratios.

    python -m benchmarks.start_up              measure, print, write benchmarks/results/start_up.json
    python -m benchmarks.start_up --quick      a smoke test: prints, writes nothing
    python -m benchmarks.tables                the README's table, from all results

The contenders take turns (A B A B), because a machine's speed drifts; a ratio compares the two of one turn. No peer's
code lies here: it comes from its own package or from a checkout that you point to (`--nanogpt PATH`).
"""
