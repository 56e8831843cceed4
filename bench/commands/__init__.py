"""The commands: options and messages, no logic. Heavy imports happen inside the command that needs them."""
