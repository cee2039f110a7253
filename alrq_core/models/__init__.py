"""The pretrained model: found, checked, loaded, and where its forward pass is replaced."""
