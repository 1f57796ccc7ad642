"""`python -m flows`: the pipeline under one Prefect server; prints where the report is."""

import argparse
import sys
from pathlib import Path

from flows.server import prefect_server
from ip2p.errors import UserError
from ip2p.params import load_params


def main() -> int:
    """Run the pipeline; exit code 2 for what the user can mend."""
    told = "The whole pipeline, by params.yaml: what is fresh is skipped, what was killed goes on. `dvc repro STAGE` runs one stage."
    argparse.ArgumentParser(prog="python -m flows", description=told).parse_args()
    try:
        load_params(Path("params.yaml"))
        with prefect_server():
            from flows.pipeline import run_pipeline

            run_pipeline()
    except UserError as error:
        print(f"ip2p: error: {error}", file=sys.stderr)
        return 2
    print(f"report: {Path('reports/report.html').resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
