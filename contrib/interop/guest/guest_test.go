package guest

import (
	"bytes"
	"strings"
	"testing"
)

func TestParseConsole(t *testing.T) {
	r, err := parseConsole("boot\r\nnoise " + beginMark + "\r\none\r\ntwo\r\n\r\n" + endMark + "3 ===\r\nafter\r\n")
	if err != nil || r.ExitCode != 3 || r.Output != "one\ntwo\n\n" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"", "boot\n" + beginMark + "\nkernel panic", beginMark + "\n" + endMark + "x ===\n"} {
		if _, err := parseConsole(bad); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var b tail
	for range 3 {
		_, _ = b.Write(bytes.Repeat([]byte("x"), maxConsole/2))
	}
	_, _ = b.Write([]byte("the end"))
	if b.Len() > maxConsole || !strings.HasSuffix(b.String(), "the end") {
		t.Errorf("%d bytes", b.Len())
	}
}
