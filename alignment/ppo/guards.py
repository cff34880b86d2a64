"""What watches over PPO: for reward hacking, that nothing is lost, and that the policy rests at first.

Reward hacking is a reward that rises while the true metric, which is not in it, falls.
"""

from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.ppo.roles import Roles
from alignment.run import say


def reward_hacking(log: list[dict[str, float]], metric: str, steps_per_update: int) -> str | None:
    """The last two evaluations against the first: a warning with the figures, or None.

    Args:
        log: A trainer's `log_history`.
        metric: The name of the true metric in it, such as `eval_rouge`; more of it is better.
        steps_per_update: Of the optimiser, which the log counts.
    """
    evaluations = [line for line in log if "eval_score" in line and metric in line]
    if len(evaluations) < 3:
        return None
    first, *last = evaluations[0], *evaluations[-2:]
    if not all(line["eval_score"] > first["eval_score"] and line[metric] < first[metric] for line in last):
        return None
    now = last[-1]
    begin, end = (line["step"] // steps_per_update for line in (first, now))
    figures = ("eval_score", metric, "eval_length_characters", "eval_repetition")
    shown = ", ".join(f"{name} {first[name]:.4g} -> {now[name]:.4g}" for name in figures if name in first)
    return (
        f"reward hacking: from update {begin} to {end} the score rose while the true metric fell "
        f"({shown}). Raise --kl_coef, lower --learning_rate, or mend the reward. With --load_best_model_at_end "
        f"true the best checkpoint by {metric} is kept, else the last."
    )


def keep_best(roles: Roles, began: dict[str, Tensor], state: TrainerState, args: TrainingArguments) -> None:
    """Ends with the best policy: of the best checkpoint, or as it began where no evaluation is better than the first.

    Args:
        began: The policy's weights before it learnt; they are not the reference's where a trainer goes on with roles.
        state: With the log, whose first evaluation is of the start, and the best checkpoint and figure since.
    """
    metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    first, best = next(line[metric] for line in state.log_history if metric in line), state.best_metric
    if first <= best if args.greater_is_better else first >= best:
        roles.load(str(state.best_model_checkpoint))
        return
    say(
        f"Nothing was gained: {metric} was {first:.4g} before, and at best {best:.4g} after. The policy is as it began."
    )
    roles.restart(began)
    state.best_model_checkpoint = None


class RewardHacking(TrainerCallback):
    """Says so when the reward is being hacked."""

    def __init__(self, metric: str, steps_per_update: int) -> None:
        self.metric, self.steps_per_update = metric, steps_per_update

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After each evaluation, whose figures are in the log by then."""
        if warning := reward_hacking(state.log_history, self.metric, self.steps_per_update):
            say(warning)


class PolicyRests(TrainerCallback):
    """Keeps the optimiser from the policy in the first steps, in which its gradients are 0.

    With those, weight decay would shrink it all the same, and the moments of Adam would count steps that say nothing.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """By now gradients are gathered, summed over processes and clipped."""
        if state.global_step < self.steps:
            kwargs["model"].forget_gradients_of_policy()
