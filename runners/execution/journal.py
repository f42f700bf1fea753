"""What is done between the steps of a run: log, evaluate, save, stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from analysis.store.schema import undeclared
from runners.evaluation.subject import Subject, declared, final_key
from runners.planning.recipe import Recipe
from runners.runs.checkpoint import Checkpoints
from runners.runs.folder import RunFolder
from runners.runs.signals import Stopped, StopRequest
from runners.training.state import Training

LOG_POINTS = 100  # logged steps of a run, whatever its length, besides the first and the evaluated ones


class Journal:
    """The ``on_step`` of a real run.

    Args:
        run: where to log; only the first of several processes writes.
        recipe: the run's.
        checkpoints: where to save, and when.
        stop: says when to save and leave.
        stop_after: a step, from 1, after which to save and leave as if ``stop`` were requested.
        on_step: called before anything else is done.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        checkpoints: Checkpoints,
        stop: StopRequest,
        *,
        stop_after: int | None = None,
        on_step: Callable[[Training], None] = lambda training: None,
    ) -> None:
        self.run, self.checkpoints, self.on_step = run, checkpoints, on_step
        self.stop, self.stop_after = stop, stop_after
        self._log_every = max(1, recipe.train.num_steps // LOG_POINTS)
        self._eval_every = recipe.eval.every_steps
        self._declared = declared(recipe)

    def begin(self, training: Training) -> None:
        """Before the first step. Raises Stopped where a stop was asked for while the run was being prepared.

        A Ctrl-C reaches the compilers too, and what they did not finish is no reason to go on without: nothing of such
        a preparation is kept.
        """
        (signum,) = training.world.most(self.stop.signum or 0)
        if signum:
            raise Stopped(signum, ", before its next step")

    def __call__(self, training: Training) -> None:
        """After a step. Raises RunInvalid when a gate fails, and Stopped once the state is saved."""
        self.on_step(training)
        step = training.progress.step
        evaluates = step % self._eval_every == 0 or training.done
        if step % self._log_every == 0 or step == 1 or evaluates:
            self._log(training, evaluates)
        self._save_or_stop(training)

    def _log(self, training: Training, evaluates: bool) -> None:
        metrics = training.metrics()
        with training.paused():
            if training.progress.step == 1:  # a probe's mistake shows before the training, not after it
                self._check({**metrics, **self._measure(training, num_windows=1)})
            if evaluates:
                measured = self._measure(training)
                training.progress.val_loss = measured["val/loss"]
                metrics |= measured
                if training.done:
                    metrics |= {final_key(key): value for key, value in measured.items()}
                    metrics |= training.final_metrics()
            self._check(metrics)
            if training.world.first:
                self.run.log(training.progress.step, metrics)

    @staticmethod
    def _measure(training: Training, num_windows: int | None = None) -> dict[str, float]:
        micro_batch = training.progress.micro_batch
        return Subject(training.model, training.recipe, training.corpus, micro_batch, num_windows).measure()

    def _check(self, metrics: Mapping[str, float]) -> None:
        if unknown := undeclared(metrics, self._declared):
            raise KeyError(f"logged but not declared, in analysis/store/schema.py or by a probe: {', '.join(unknown)}")

    def _save_or_stop(self, training: Training) -> None:
        checkpoints, world, step = self.checkpoints, training.world, training.progress.step
        signum, saves = world.most(self.stop.signum or 0, world.first and checkpoints.due())
        leaves = bool(signum) or step == self.stop_after
        if not (leaves or saves) or training.done:
            return
        with training.paused():
            state = training.snapshot()  # nothing is saved that was not looked at
            if world.first:
                checkpoints.save(training.model, training.optimizer, state)
        if leaves:
            checkpoints.wait()
            if world.first and checkpoints.saved != step:  # it is the last chance
                checkpoints.save(training.model, training.optimizer, state)
                checkpoints.wait()
            raise Stopped(signum, "" if not world.first or checkpoints.saved == step else ", without saving")
