package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moraine-storage/moraine/plugins/errdefs"
)

// The files of an identity.
const (
	nodeKeyFile  = "node.key"
	nodeCertFile = "node.crt"
	caCertFile   = "ca.crt"
	caKeyFile    = "ca.key"
)

// loadOrMakeKey returns the key of a node, drawing it at the first call.
func loadOrMakeKey(dir string) (*ecdsa.PrivateKey, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, nodeKeyFile)
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, encodePEM("PRIVATE KEY", der))
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	blocks, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := parseKey(blocks[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// readPEM returns the blocks of a file, at least one, all of one kind.
func readPEM(path, kind string) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, pemBytesMax+1))
	if err != nil {
		return nil, err
	}
	blocks, err := parsePEM(b, kind)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return blocks, nil
}

func parsePEM(b []byte, kind string) ([][]byte, error) {
	if len(b) > pemBytesMax {
		return nil, fmt.Errorf("more than %d bytes: %w", pemBytesMax, errdefs.ErrInvalidArgument)
	}
	var out [][]byte
	for {
		block, rest := pem.Decode(b)
		if block == nil {
			break
		}
		if block.Type != kind {
			return nil, fmt.Errorf("it has a %.40q where %s is due: %w", block.Type, kind, errdefs.ErrInvalidArgument)
		}
		out = append(out, block.Bytes)
		b = rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("it has no %s in PEM: %w", kind, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// writeFile replaces a file at once and durably: after a crash it has the old
// content or the new.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// keyHash names a public key.
func keyHash(pub *ecdsa.PublicKey) (Hash, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Hash{}, err
	}
	return sha256.Sum256(der), nil
}
