package config

import "strings"

// suggest returns ` (did you mean "x"?)` when one of the known words is close
// to word, else the list of them if it is short, else nothing.
func suggest(word string, known []string) string {
	best, found := 3, "" // at most two edits
	if len(word) <= 64 {
		for _, k := range known {
			if d := distance(strings.ToLower(word), k); d < best && d < len(k) {
				best, found = d, k
			}
		}
	}
	switch {
	case found != "":
		return ` (did you mean "` + found + `"?)`
	case len(known) > 0 && len(known) <= 16:
		return " (known: " + strings.Join(known, ", ") + ")"
	}
	return ""
}

// distance is the number of edits (insert, delete, replace, swap of
// neighbours) from a to b.
func distance(a, b string) int {
	prev2, prev := []int(nil), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(prev[j]+cost, prev[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], prev2[j-1]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(b)]
}
