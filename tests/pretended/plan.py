"""What is run on the pretended device: settings and commands by name. Torch is not needed here."""

DEVICE = "pretended:0"

USUAL = [
    "model.name=llama",
    "model.task=instruction",
    "data.name=rows.jsonl",
    "data.partition=iid",
    "data.clients=2",
    "data.max_length=24",
    "adapter.rank=4",
    "train.steps=2",
    "train.batch_size=4",
    "train.optimizer=sgd",  # Adam makes much of what is rounded otherwise
    "train.lr=0.1",
    "run.rounds=1",
    "run.track=[]",
    "simulation.workers=0",
]
BERT = ["model.name=bert/model", "model.task=classification", "data.name=bert/rows.jsonl"]
ANSWERS = ["generate.rows=2", "generate.max_new_tokens=3"]
PRIVATE = ["strategy.name=fedit", "privacy.epsilon=8", "privacy.insecure_seed=1"]
MORE = ["data.packing=true", "train.proximal=0.1"]
ALONE = "simulation.copies=1"  # clients that share passes otherwise

# Each is made on the CPU too.
RUNS = {
    "stacked": ["strategy.name=fedex", *ANSWERS],
    "alone": ["strategy.name=fslora", ALONE, "generate.temperature=0.5", *ANSWERS],
    "bf16": ["strategy.name=fedsa", "model.dtype=bf16", "model.gradient_checkpointing=true"],
    "private": PRIVATE,
    "private-alone": [*PRIVATE, ALONE],
    "central": [*PRIVATE, "privacy.mode=central", "privacy.epsilon=20"],
    "fedsb": ["strategy.name=fedsb"],
    "xs": ["strategy.name=fedsb", "strategy.init=xs"],
    "sketch": ["strategy.name=fedsb", "strategy.init=sketch"],
    "pissa": ["strategy.name=fedit", "adapter.init=pissa", "train.optimizer=lora-fa", *MORE],
    "dropout": ["strategy.name=fedit", "adapter.dropout=0.3", ALONE],
    "dora": ["strategy.name=fedit", "adapter.dora=true", "train.optimizer=lora-plus"],
    "vera": ["strategy.name=fedit", "adapter.kind=vera"],
    "bert": ["strategy.name=fedex", *BERT],
    "hooks": [*PRIVATE, "privacy.engine=hooks", *BERT],
}
# Commands on what runs left.
AFTER = {
    "resume": ["run", "--resume", "runs/stacked", "run.rounds=2"],
    "evaluate": ["evaluate", "runs/bert", "--json"],
    "client": ["evaluate", "runs/bf16", "--json", "--client", "client-00"],
    "export": ["export", "runs/stacked", "exported"],
    "merge": ["export", "runs/dora", "merged", "--merge"],
    "merge-cpu": ["export", "runs/dora-cpu", "merged-cpu", "--merge"],
    "chat": ["chat", "runs/stacked", "--prompt", "what colour has thing1", "--max-new-tokens", "3"],
}
# Loops of training steps, each with the settings that it is watched with.
LOOPS = {
    "plain": [],
    "classified": [*BERT],
    "stacked": [],
    "bf16": ["model.dtype=bf16"],
    "private": [*PRIVATE, "privacy.engine=stacked"],
    "hooks": [*PRIVATE, "privacy.engine=hooks"],
    "private_stacked": PRIVATE,
    "owned": PRIVATE,  # an owner's rows, of which each is computed with alone
}
