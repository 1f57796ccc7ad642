"""Captions to instruction triplets, as a Prefect flow: `python -m flows.triplets`."""

from flows.stage import main, stage_flow

triplets = stage_flow("triplets", "Captions to instruction triplets")

if __name__ == "__main__":
    main(triplets)
