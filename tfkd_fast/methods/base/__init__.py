"""What every training method is built on."""
