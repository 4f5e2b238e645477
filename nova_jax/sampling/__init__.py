"""Drawing samples: schedules, guidance, reveal order, frame-by-frame generation."""
