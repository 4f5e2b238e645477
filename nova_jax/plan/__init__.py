"""What a run would cost on a machine that is not here."""
