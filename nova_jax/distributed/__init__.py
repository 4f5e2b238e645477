"""Where arrays live on the devices."""
