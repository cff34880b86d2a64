"""PPO on one base: four LoRA roles, rollouts, the arithmetic, and the trainer."""

from alignment.ppo.config import PPOConfig
from alignment.ppo.roles import Roles
from alignment.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "Roles"]
