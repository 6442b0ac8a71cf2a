package drivers

import (
	"fmt"
	"os/exec"
)

// LookProgram says whether a program is installed, and in which Debian package
// it would be found.
func LookProgram(name, pkg string) Support {
	s := Support{Name: name}
	path, err := exec.LookPath(name)
	if err != nil {
		s.Reason = fmt.Sprintf("%s is not installed", name)
		s.Fix = "install " + pkg
		return s
	}
	s.Available, s.Reason = true, path
	return s
}
