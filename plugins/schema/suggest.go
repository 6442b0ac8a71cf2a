package schema

// suggest returns ` (did you mean "x"?)` when a known name is close to name.
func (s Schema) suggest(name string) string {
	best, found := 3, "" // at most two edits
	for _, a := range s.Attributes {
		if d := distance(trimName(name), a.Name); d < best && d < len(a.Name) {
			best, found = d, a.Name
		}
	}
	if found == "" {
		return ""
	}
	return ` (did you mean "` + found + `"?)`
}

// distance is the number of edits (insert, delete, replace) from a to b; both
// are at most 64 bytes long here.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
