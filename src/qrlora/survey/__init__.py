"""Rating studies with people: levels and paired comparisons, from a fixed plan to a report with intervals."""
