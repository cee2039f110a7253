"""The trainable part: LoRA around packed layers, how it starts, and AdaLoRA."""
