package lint

import (
	"path/filepath"
	"testing"

	"github.com/moraine-storage/moraine/agent/config"
)

// What `make install` puts into /etc/moraine starts an agent.
func TestInstalledConfiguration(t *testing.T) {
	c, diags := config.Load([]string{filepath.Join(root, "contrib/systemd/agent.hcl")}, nil)
	if len(diags) > 0 {
		t.Fatal(diags)
	}
	if len(c.Backends) != 1 || c.Docker == nil {
		t.Errorf("%d backends, docker %v", len(c.Backends), c.Docker)
	}
}
