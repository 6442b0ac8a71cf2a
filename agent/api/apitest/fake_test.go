package apitest

import (
	"testing"

	"github.com/moraine-storage/moraine/agent/api"
)

func TestFakeConforms(t *testing.T) {
	Run(t, Harness{
		New: func(*testing.T) api.Service { return NewFake(Options{}) },
		Write: func(t *testing.T, svc api.Service, volume string, off, length int64) {
			if err := svc.(*Fake).Write(volume, off, length); err != nil {
				t.Fatal(err)
			}
		},
	})
}
