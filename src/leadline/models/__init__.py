"""The networks that Leadline owns: encoders, decoders and the architectures made of them."""
