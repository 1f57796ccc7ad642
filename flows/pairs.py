"""Triplets to image pairs by Prompt-to-Prompt, as a Prefect flow: `python -m flows.pairs`."""

from flows.stage import main, stage_flow

pairs = stage_flow("pairs", "Triplets to image pairs by Prompt-to-Prompt")

if __name__ == "__main__":
    main(pairs)
