"""A Flower app as its users write them, to be compared with: the FlowerTune pattern.

`python -m simulations.benchmarks.flowertune --data ROWS.jsonl --log FILE` runs it on Flower's Ray
engine. Model and adapter are made anew for every message, adapter tensors come and go by PEFT's
state dict, FedAvg takes their mean, flwr-datasets divides the rows. Of fedlora it has the place of
the model's files; what it notes are seconds.

References: Flower's `flowertune-llm` example and its `quickstart-huggingface` template.
"""
