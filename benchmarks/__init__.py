"""Speed and memory beside diffusers + PEFT and beside plain copies; each file is one command."""
