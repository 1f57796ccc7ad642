"""Training of the embedded models from rendered scenes: tokenizer, CLIP, autoencoder, text-to-image UNet."""
