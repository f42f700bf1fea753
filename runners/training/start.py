"""Before the first step: the recipe, the data and the model checked, compiled or not, and a micro-batch found."""

from __future__ import annotations

from llama_variants import build_model
from llama_variants.blocks.init import perturb
from runners.planning.components import OPTIMIZER
from runners.runs.checkpoint import Checkpoint
from runners.training import gates, memory
from runners.training.autotune import settle
from runners.training.compile import wants_compile
from runners.training.determinism import make_deterministic, set_as_trained
from runners.training.state import Progress, Training, batch_id


def start(training: Training, checkpoint: Checkpoint | None, micro_batch: int | None, compile_mode: str) -> None:
    """Give ``training`` its model, its optimizer and its progress: new, or as ``checkpoint`` has them.

    Raises:
        RunInvalid: when a validity gate fails.
        CheckpointError: when ``checkpoint`` is of another model.
    """
    recipe, device, world, config = training.recipe, training.device, training.world, training.recipe.train
    make_deterministic(config.deterministic)
    memory.keep_freed(device)
    memory.reset_peak(device)
    gates.check_recipe(config)
    gates.check_data(training.corpus, recipe)
    seed = training.seed + config.init_seed_shift
    training.model = model = build_model(recipe.model, seed=seed, device=device)
    perturb(model, config.init_perturbation, seed)
    set_as_trained(model, config, training.corpus.manifest["end_id"])
    training.optimizer = OPTIMIZER[config.optimizer.type](config.optimizer, model)
    training.progress = progress = Progress.of(checkpoint.state if checkpoint else None, config)
    if checkpoint:
        checkpoint.restore(model, training.optimizer)
        before = batch_id(training.rows(progress.step - 1))
        gates.check_continues(before, progress.last_batch, progress.first_batch, progress.step)
    if world.least(progress.step) != progress.step:
        raise RuntimeError("the processes of this run do not see the same checkpoints: is the folder shared?")

    probe = training.batch(progress.step)
    gates.preflight(model, probe)
    kept = checkpoint is not None and compile_mode == "auto"
    progress.micro_batch, progress.compiled = settle(
        model,
        training.optimizer,
        probe,
        config,
        world,
        training.say,
        compiled=progress.compiled if kept else wants_compile(compile_mode, device),
        micro_batch=micro_batch or progress.micro_batch,
    )
