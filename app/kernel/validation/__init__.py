"""Rules for values of people: text that can be stored, e-mail addresses, and the codes of invalid fields."""
