"""SBX's PPO (Stable-Baselines3 in JAX) on a task given by flags; prints what it counted."""

from __future__ import annotations

import json

import sbx
from flags import parse_args
from run_sb3 import make_model, train


def main() -> None:
    """Train; the state of its optimizer counts the gradient steps."""
    given = parse_args(__doc__)
    model = make_model(sbx.PPO, given)
    counted = train(model, given)
    print(json.dumps(counted | {"gradient_steps": int(model.policy.actor_state.step)}))


if __name__ == "__main__":
    main()
