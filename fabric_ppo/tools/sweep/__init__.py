"""Search for hyperparameters with Optuna (`fabric-ppo sweep`)."""
