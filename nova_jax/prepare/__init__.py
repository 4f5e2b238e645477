"""Videos, pictures and captions to records that training reads."""
