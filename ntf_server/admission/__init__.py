"""Who may ask for how much: budgets of strangers, by session, address, device token and in all. No I/O."""
